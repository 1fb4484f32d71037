#!/usr/bin/env python3
"""The slot map in etcd, with real processes: a trainer works on two memory servers whose slot map is a key of etcd. etcd is killed: training
goes on, commands that need the map say which member is away. etcd comes back: a third server joins under load, two movers race, and each of
their moves happens once or not at all. The loss of every step is that of a run that nobody disturbed and whose slot map is a file (within 1e-4:
the squares of the gradient are added per server, so that the last bits of the norm depend on who has which slots). Needs Debian's etcd-server.
Loopback, bounded in time.

    tests/integration/etcd/etcd_test.py
"""
import contextlib
import json
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "testing"), str(ROOT / "integration/train")]
import resume_test  # noqa: E402
from local_cluster import BINARIES, TIME_SCALE, MemoryServers, free_ports, membank  # noqa: E402

resume_test.STEPS = 20000  # more than are ever made: the runs are stopped


class Etcd:
    """One member, on the same ports and data whenever it is started."""

    def __init__(self, directory):
        self.directory = directory
        self.port, self.peer_port = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        client, peer = f"http://{self.address}", f"http://127.0.0.1:{self.peer_port}"
        self.process = subprocess.Popen(
            ["etcd", "--name", "e0", "--data-dir", self.directory / "etcd", "--listen-client-urls", client, "--advertise-client-urls", client,
             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"e0={peer}", "--logger", "zap",
             "--log-outputs", self.directory / "etcd.log"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60 * TIME_SCALE
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None and time.monotonic() < deadline, (self.directory / "etcd.log").read_text()[-3000:]
            time.sleep(0.05)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process is not None:
            self.kill()


class Trainer:
    """A run in the background, until it is stopped."""

    def __init__(self, directory, servers, name):
        self.output = directory / name
        with open(directory / f"{name}.log", "ab") as log:
            self.process = subprocess.Popen([BINARIES / "membank", *resume_test.train_arguments(directory, servers, self.output, "frozen")],
                                            stdout=log, stderr=log)
        self.log = directory / f"{name}.log"

    def steps(self):
        path = self.output / "log.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def wait_for(self, steps, seconds=60):
        """That many more steps."""
        goal, deadline = self.steps() + steps, time.monotonic() + seconds * TIME_SCALE
        while self.steps() < goal:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.01)

    def stop(self):
        """What each step said."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60 * TIME_SCALE) == 0, self.log.read_text()[-3000:]
        lines = [json.loads(line) for line in (self.output / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "the log has gaps or repeats"
        return [line["loss"] for line in lines]

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def slots(location, action, *arguments, expect=0):
    return membank("bank", "slots", action, "--slot-map", location, *arguments, expect=expect)


def listed(location):
    return json.loads(slots(location, "list", "--json").stdout)


def check_away(etcd, location, trainer):
    etcd.kill()
    trainer.wait_for(20)
    for command in (("slots", "list"), ("status",)):
        away = membank("bank", *command, "--slot-map", location, expect=1).stderr
        assert f"no member of etcd answers; {etcd.address}" in away, away
    trainer.wait_for(20)
    etcd.start()
    print("ok  training goes on while etcd is away; commands name the member that is")


def check_join(location, servers, trainer):
    [servers.ports["m2"]] = free_ports(1)
    servers.launch("m2")
    assert servers.wait_ready("m2"), servers.log("m2")
    targets = [word for name, port in servers.ports.items() for word in ("--server", f"{name}=127.0.0.1:{port}")]
    slots(location, "rebalance", *targets, "--json")
    after = listed(location)
    assert [server["id"] for server in after["servers"]] == ["m0", "m1", "m2"] and all(server["bytes"] > 0 for server in after["servers"]), after
    trainer.wait_for(20)
    print(f"ok  a third server joined under load: slot map epoch {after['epoch']}")


def check_race(location, trainer):
    """Two moves of other slots, planned from the same map, at the same time: none is lost, none happens twice."""
    before = listed(location)
    giver = max(before["servers"], key=lambda server: server["slots"])["id"]
    value = subprocess.run(["etcdctl", "--endpoints", location.removeprefix("etcd://").split("/")[0], "get", "--print-value-only", "/membank/slots"],
                           capture_output=True, text=True, check=True, env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"}).stdout
    mine = [slot for owner, first, last in json.loads(value)["slots"] if owner == giver for slot in range(first, last + 1)]
    others = [server["id"] for server in before["servers"] if server["id"] != giver]
    wanted = dict(zip(others, (mine[0:8], mine[8:16])))
    assert len(mine) >= 16 and len(wanted) == 2, before

    def mover(target):
        return subprocess.Popen([BINARIES / "membank", "bank", "slots", "move", "--slot-map", location, "--from", giver, "--to", target, "--slots",
                                 ",".join(map(str, wanted[target])), "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    racing, lost, done = {target: mover(target) for target in wanted}, 0, 0
    while racing:
        again = {}
        for target, process in racing.items():
            error = process.communicate(timeout=120 * TIME_SCALE)[1]
            if process.returncode == 0:
                done += 1
                continue
            assert f"nothing changed, they stay on {giver}" in error, error
            lost += 1
            assert lost < 10, error
            again[target] = error
        racing = {}
        for target in again:  # one after the other: they cannot lose again
            racing[target] = mover(target)
            racing[target].wait(120 * TIME_SCALE)
    after = listed(location)
    assert after["epoch"] == before["epoch"] + 2 and sum(server["slots"] for server in after["servers"]) == 1024, (before, after)
    change = {server["id"]: server["slots"] for server in after["servers"]}
    for server in before["servers"]:
        assert change[server["id"]] - server["slots"] == (-16 if server["id"] == giver else 8), (before, after)
    trainer.wait_for(20)
    print(f"ok  two movers raced: {done} moves in the end, {lost} refused on the way with nothing changed")


def main():
    with tempfile.TemporaryDirectory(prefix="membank-etcd-") as name, contextlib.ExitStack() as stack:
        directory = pathlib.Path(name)
        resume_test.prepare(directory)
        etcd = stack.enter_context(contextlib.closing(Etcd(directory)))
        etcd.start()
        location = f"etcd://{etcd.address}/membank/slots"
        with contextlib.closing(MemoryServers(directory / "bank", directory / "bank.json", slot_map=location)) as servers:
            again = membank("bank", "slots", "init", "--server", "m0=127.0.0.1:1", "--output", location, expect=1).stderr
            assert f"there is a slot map at {location} already" in again, again
            servers.start()
            with contextlib.closing(Trainer(directory, servers, "disturbed")) as trainer:
                trainer.wait_for(20)
                check_away(etcd, location, trainer)
                check_join(location, servers, trainer)
                check_race(location, trainer)
                disturbed = trainer.stop()
        with contextlib.closing(MemoryServers(directory / "straight-bank", directory / "bank.json")) as servers:
            servers.start()
            with contextlib.closing(Trainer(directory, servers, "straight")) as trainer:
                trainer.wait_for(len(disturbed), 150)
                straight = trainer.stop()
        for step, (one, other) in enumerate(zip(straight, disturbed), 1):
            assert abs(one - other) < 1e-4, f"step {step}: loss {other} instead of {one}"
        equal = sum(one == other for one, other in zip(straight, disturbed))
        print(f"ok  {len(disturbed)} steps have the losses of a run with a file that nobody disturbed, {equal} to the bit")


if __name__ == "__main__":
    main()
