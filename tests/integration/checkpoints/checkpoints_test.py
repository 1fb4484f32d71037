#!/usr/bin/env python3
"""`membank checkpoint` with real processes. A run moves from two memory servers to three and then to one, by export and import, once through a
directory and once through S3; its losses and the bytes of its bank equal those of a run that stayed where it was. Flipped bytes are found, by
name, on a server and in a backup, and nothing damaged is brought in. Uploads to S3 are signed and survive refusals. Loopback, bounded in time.

    tests/integration/checkpoints/checkpoints_test.py
"""
import contextlib
import http.server
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "testing"), str(ROOT / "integration/train")]
import resume_test  # noqa: E402
from local_cluster import BINARIES, CACHE, TIME_SCALE, MemoryServers, free_ports, membank  # noqa: E402

resume_test.STEPS = STEPS = 90
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-central-1"}


def checkpoint(servers, action, *arguments, expect=0):
    return membank("checkpoint", action, "--slot-map", servers.slot_map, *arguments, expect=expect)


def export(servers, place):
    return json.loads(checkpoint(servers, "export", "--to", place, "--json").stdout.splitlines()[-1])


def parts(backup):
    return json.loads((backup / "manifest.json").read_text())["parts"]


def train(directory, servers, output, until=None):
    """Runs to the end, or until the log has `until` steps and SIGTERM makes a checkpoint."""
    arguments = [BINARIES / "membank", *resume_test.train_arguments(directory, servers, output, "frozen")]
    with open(directory / "train.log", "ab") as log:
        trainer = subprocess.Popen(arguments, stdout=log, stderr=log)
        deadline = time.monotonic() + 120 * TIME_SCALE
        while until and trainer.poll() is None:
            assert time.monotonic() < deadline
            lines = (output / "log.jsonl").read_text().count("\n") if (output / "log.jsonl").exists() else 0
            if lines >= until:
                trainer.send_signal(signal.SIGTERM)
                break
            time.sleep(0.005)
        assert trainer.wait(120) == 0, (directory / "train.log").read_text()[-3000:]
    return (output / "log.jsonl").read_text().count("\n")


def flip(path):
    with open(path, "r+b") as file:  # in place: a server may have it mapped
        file.seek(path.stat().st_size // 3)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


class RefusingS3(http.server.BaseHTTPRequestHandler):
    """The two requests that backups make, in memory; every third request is refused with 503."""
    objects, requests, refused = {}, 0, 0

    def answer(self, code, body=b""):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def enter(self):
        cls = type(self)
        cls.requests += 1
        assert self.headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=test/") and "/eu-central-1/s3/aws4_request" in self.headers["Authorization"]
        if cls.requests % 3 == 1:
            cls.refused += 1
            self.answer(503, b"slow down")
            return False
        return True

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.enter():
            return
        if self.headers["If-None-Match"] == "*" and self.path in self.objects:
            return self.answer(412)
        self.objects[self.path] = body
        self.answer(200)

    def do_GET(self):
        if self.enter():
            self.answer(*((200, self.objects[self.path]) if self.path in self.objects else (404, b"")))

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def refusing_s3():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RefusingS3)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ.update(KEYS, AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()


@contextlib.contextmanager
def moto_s3(directory):
    """A real S3 implementation, where deploy/setup --dev installed it."""
    program = CACHE / "dev/bin/moto_server"
    if not program.exists():
        print(f"skipped: the S3 server moto ({program} is not there; deploy/setup --dev installs it)")
        yield None
        return
    port = free_ports(1)[0]
    with open(directory / "moto.log", "ab") as log:
        server = subprocess.Popen([program, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        endpoint = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60 * TIME_SCALE
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/backups", method="PUT"), timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline and server.poll() is None, (directory / "moto.log").read_text()[-3000:]
                time.sleep(0.1)
        os.environ.update(KEYS, AWS_ENDPOINT_URL_S3=endpoint)
        yield "s3://backups/runs/one"
    finally:
        server.kill()
        server.wait()


def check_s3(directory, servers, expected, place):
    summary = export(servers, place)
    assert summary["parts"] == len(expected), summary
    again = checkpoint(servers, "export", "--to", place, expect=1)
    assert "exists" in again.stderr, again.stderr
    assert "is whole" in membank("checkpoint", "verify-backup", "--from", place).stdout
    with contextlib.closing(MemoryServers(directory / f"from-{len(place)}", directory / "bank.json", 1)) as one:
        one.start()
        checkpoint(one, "import", "--from", place)
        export(one, directory / f"again-{len(place)}")
        assert parts(directory / f"again-{len(place)}") == expected


def check_damage(directory, servers, backup):
    assert "is whole" in checkpoint(servers, "verify").stdout
    cut = max((servers.directory / "m1/checkpoints").glob("*/committed.json"), key=lambda path: path.stat().st_mtime).parent
    flip(max(cut.glob("weights/*.sst"), key=lambda path: path.stat().st_size))
    damaged = checkpoint(servers, "verify", expect=1)
    assert "server m1" in damaged.stdout and str(cut) in damaged.stdout and "server m0" not in damaged.stdout, damaged.stdout
    assert checkpoint(servers, "export", "--to", directory / "never", expect=1).stderr
    assert not (directory / "never/manifest.json").exists()

    with contextlib.closing(MemoryServers(directory / "refusing", directory / "bank.json", 1)) as one:
        one.start()
        flip(backup / "part-00000001")
        found = membank("checkpoint", "verify-backup", "--from", backup, expect=1)
        assert "part-00000001 has CRC32C" in found.stdout, found.stdout
        refused = checkpoint(one, "import", "--from", backup, expect=1)
        assert "part-00000001 has CRC32C" in refused.stderr, refused.stderr
        assert json.loads(checkpoint(one, "list", "--json").stdout) == []
        missing = checkpoint(one, "import", "--from", directory / "nowhere", expect=1)
        assert "there is no backup" in missing.stderr, missing.stderr


def check_restore(servers):
    """An older checkpoint becomes the head; "latest" stays the newest one that was made, for every command."""
    listed = json.loads(checkpoint(servers, "list", "--json").stdout)
    older, newest = listed[0], listed[-1]
    assert older["step"] < newest["step"] and all(one["committed"] for one in listed), listed
    checkpoint(servers, "restore", "--id", older["id"])
    status = json.loads(membank("bank", "status", "--slot-map", servers.slot_map, "--json").stdout)
    assert status["head_step"] == older["step"], status
    published = json.loads(membank("bank", "publish", "--slot-map", servers.slot_map, "--version", "newest", "--json").stdout)
    assert published["checkpoint"] == newest["id"], (published, listed)


def main():
    with tempfile.TemporaryDirectory(prefix="membank-checkpoints-") as name:
        directory = pathlib.Path(name)
        resume_test.prepare(directory)
        spec = directory / "bank.json"

        with contextlib.closing(MemoryServers(directory / "straight", spec, 2)) as servers:
            servers.start()
            train(directory, servers, directory / "straight-run")
            export(servers, directory / "straight-backup")
        expected, expected_losses = parts(directory / "straight-backup"), resume_test.losses(directory / "straight-run")

        output, stops = directory / "moved-run", []
        with contextlib.closing(MemoryServers(directory / "two", spec, 2)) as two:
            two.start()
            stops.append(train(directory, two, output, 25))
            export(two, directory / "from-two")
        with contextlib.closing(MemoryServers(directory / "three", spec, 3)) as three:
            three.start()
            checkpoint(three, "import", "--from", directory / "from-two")
            stops.append(train(directory, three, output, 55))
            export(three, directory / "from-three")
        with contextlib.closing(MemoryServers(directory / "one", spec, 1)) as one:
            one.start()
            checkpoint(one, "import", "--from", directory / "from-three")
            train(directory, one, output)
            export(one, directory / "from-one")
            assert stops[0] < stops[1] < STEPS, stops
            for step, (expected_line, line) in enumerate(zip(expected_losses, resume_test.losses(output)), 1):
                # The norm is a sum of the servers' sums in fp64, whose last bits depend on their number; the clip factor made of it is fp32.
                assert abs(expected_line[2] - line[2]) <= 1e-12 * expected_line[2], (step, expected_line, line)
                assert (*expected_line[:2], *expected_line[3:]) == (*line[:2], *line[3:]), f"step {step}, moved after {stops}: {line}, not {expected_line}"
            assert parts(directory / "from-one") == expected, f"the bank differs; moved after steps {stops}"
            print(f"ok  2 -> 3 -> 1 servers, moved after steps {stops}: losses and all bytes of blocks and optimizer are equal")

            with refusing_s3():
                check_s3(directory, one, expected, "s3://bucket/prefix")
                print(f"ok  S3: {RefusingS3.requests} signed requests, {RefusingS3.refused} of them refused at first")
            with moto_s3(directory) as place:
                if place:
                    check_s3(directory, one, expected, place)
                    print("ok  S3: moto")
            check_restore(one)
            print("ok  a restored checkpoint is the head")

        with contextlib.closing(MemoryServers(directory / "damaged", spec, 2)) as two:
            two.start()
            checkpoint(two, "import", "--from", directory / "from-three")
            check_damage(directory, two, directory / "from-three")
            print("ok  flipped bytes on a server and in a backup are named; nothing damaged is brought in")


if __name__ == "__main__":
    main()
