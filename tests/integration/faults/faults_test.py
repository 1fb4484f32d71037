#!/usr/bin/env python3
"""Faults between and under real processes, judged by expected_state (a trainer that knows every block's value). Each kind of fault prints
how often it really struck; a failure prints the seed and the line that repeats it.

    faults_test.py [--long] [--only points|kills|pauses|network|disk|files] [--seed N]
"""
import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "testing"))
from local_cluster import BINARIES, SOURCE, TIME_SCALE, MemoryServers  # noqa: E402
from proxy import Proxy  # noqa: E402

WITH_POINTS = "../tests/membank-memory-server-faults"
NAMES = ["m0", "m1"]
SPEC = {"anchor_fingerprint": "aa", "bank_id": "faults", "dtype": "F32", "fan_out": 4, "hidden": 32, "layers": 2, "seed": 7, "tree_fingerprint": "bb",
        "type": "ffn", "widths": [8, 4]}


class Trainer:
    """expected_state, running until stop()."""

    def __init__(self, slot_map, seed):
        self.stop_file = pathlib.Path(f"{slot_map}.stop")
        self.stop_file.unlink(missing_ok=True)
        self.process = subprocess.Popen([BINARIES / "../tests/expected_state", "--slot-map", slot_map, "--seed", str(seed), "--stop-file", self.stop_file],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def check_alive(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the trainer ended: {self.process.stderr.read()}")

    def stop(self):
        """Its counts; fails when anything it compared was wrong."""
        self.stop_file.touch()
        out, err = self.process.communicate(timeout=90 * TIME_SCALE)
        if self.process.returncode != 0:
            raise AssertionError(f"the trainer failed: {err}")
        return json.loads(out.splitlines()[-1])


@contextlib.contextmanager
def cluster(directory, program=WITH_POINTS, flags=("--free-space-watermark-bytes", "0")):
    spec = directory / "spec.json"
    spec.write_text(json.dumps(SPEC))
    servers = MemoryServers(directory / "bank", spec, program=program, arguments=["--admin-listen", "", *flags, "--log-level", "warn"])
    with contextlib.closing(servers):
        yield servers


def restart(servers, name):
    servers.launch(name)
    if not servers.wait_ready(name):
        raise AssertionError(f"{name} does not start again:\n{servers.log(name)}")


def kill(servers, names):
    for name in names:
        servers.running[name].send_signal(signal.SIGKILL)
    for name in names:
        servers.running[name].wait()


def points():
    """The names of all fail points in the memory server's sources: a new one is struck from the day it is written."""
    found = [name for path in sorted((SOURCE / "memory_server").glob("*.cc")) for name in re.findall(r'MEMBANK_FAIL_POINT\("([^"]+)"\)', path.read_text())]
    assert len(found) == len(set(found)), f"fail points named twice: {[name for name, n in collections.Counter(found).items() if n > 1]}"
    return found


def move_slots_to(servers, name):
    """Two slots of the other server to this one, as a process; whether the move takes place is the fault's affair."""
    owned = [(owner, str(first)) for owner, first, _ in json.loads(pathlib.Path(servers.slot_map).read_text())["slots"] if owner != name][:2]
    return subprocess.Popen([BINARIES / "membank", "bank", "slots", "move", "--slot-map", servers.slot_map, "--from", owned[0][0], "--to",
                             name, "--slots", ",".join(slot for _, slot in owned), "--lease-seconds", "2"],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def strike_points(directory, choice, times):
    """Dies at each named point, in one server, and comes back."""
    struck, counts = collections.Counter(), collections.Counter()
    for i in range(times):
        (directory / str(i)).mkdir()
        with cluster(directory / str(i)) as servers:
            servers.start()
            trainer = Trainer(servers.slot_map, choice.randrange(1 << 30))
            for point in choice.sample(points(), len(points())):
                name = choice.choice(NAMES)
                kill(servers, [name])
                servers.launch(name, {"MEMBANK_FAIL_POINT": f"{point}@{choice.randint(1, 2) if not point.startswith('start.') else 1}"})
                deadline = time.monotonic() + 60 * TIME_SCALE
                mover = None
                while servers.running[name].poll() is None:
                    trainer.check_alive()
                    if point.startswith("slots.") and (mover is None or mover.poll() is not None):
                        mover = move_slots_to(servers, name)
                    if time.monotonic() > deadline:
                        raise AssertionError(f"fail point {point} was not passed within 60 s")
                    time.sleep(0.01)
                if servers.running[name].returncode != -signal.SIGKILL:
                    raise AssertionError(f"{name} ended at {point} with {servers.running[name].returncode}:\n{servers.log(name)}")
                if mover is not None:
                    mover.wait(60 * TIME_SCALE)
                struck[point] += 1
                restart(servers, name)
            counts.update(trainer.stop())
        shutil.rmtree(directory / str(i))
    return f"{sum(struck.values())} deaths at {len(struck)} named points", counts


def strike_kills(directory, choice, times):
    """kill -9 at random moments, of one server or both."""
    with cluster(directory) as servers:
        servers.start()
        trainer = Trainer(servers.slot_map, choice.randrange(1 << 30))
        killed = 0
        for _ in range(times):
            time.sleep(choice.uniform(0.05, 0.9))
            trainer.check_alive()
            names = choice.choice([["m0"], ["m1"], NAMES])
            kill(servers, names)
            killed += len(names)
            for name in names:
                servers.launch(name)
            for name in names:
                if not servers.wait_ready(name):
                    raise AssertionError(f"{name} does not start again:\n{servers.log(name)}")
        counts = trainer.stop()
    return f"{killed} kills at {times} random moments", counts


def strike_pauses(directory, choice, times):
    """SIGSTOP for longer and shorter than the calls' time-outs."""
    with cluster(directory) as servers:
        servers.start()
        trainer = Trainer(servers.slot_map, choice.randrange(1 << 30))
        stopped = 0.0
        for i in range(times):
            time.sleep(choice.uniform(0.1, 0.5))
            trainer.check_alive()
            server = servers.running[choice.choice(NAMES)]
            pause = [0.2, 1.0, 5.0][i % 3]
            server.send_signal(signal.SIGSTOP)
            time.sleep(pause)
            server.send_signal(signal.SIGCONT)
            stopped += pause
        counts = trainer.stop()
    return f"{times} pauses, {stopped:.1f} s in all", counts


def strike_network(directory, choice, times):
    """Connections cut, delayed, swallowed and refused between trainer and servers."""
    with cluster(directory) as servers, contextlib.ExitStack() as stack:
        servers.start()
        proxies = {name: stack.enter_context(contextlib.closing(Proxy(servers.ports[name]))) for name in NAMES}
        through = servers.directory / "proxies.json"
        servers.write_slot_map(through, {name: proxy.port for name, proxy in proxies.items()})
        trainer = Trainer(through, choice.randrange(1 << 30))
        kinds = ["cut", "delay", "swallow", "refuse"]
        for i in range(times):
            time.sleep(choice.uniform(0.1, 0.5))
            trainer.check_alive()
            proxy, kind = proxies[choice.choice(NAMES)], kinds[i % len(kinds)]
            if kind == "cut":
                proxy.cut()
            elif kind == "delay":
                proxy.delay_s = 0.075
                time.sleep(1)
                proxy.delay_s = 0
            elif kind == "swallow":
                proxy.blackhole = True
                time.sleep(0.5)
                proxy.blackhole = False
                proxy.cut()  # what lost bytes can only be given up
            else:
                proxy.refuse = True
                proxy.cut()
                time.sleep(0.5)
                proxy.refuse = False
        counts = trainer.stop()
        struck = collections.Counter()
        for proxy in proxies.values():
            struck.update(proxy.struck)
        missing = [kind for kind, n in struck.items() if n == 0]
        assert not missing, f"never struck: {missing}"
    return ", ".join(f"{n} {kind}" for kind, n in struck.items()), counts


def strike_disk(directory, choice, times):
    """A disk that fills up under the servers and empties again: writes are refused, reads go on, nobody dies."""
    disk = directory / "bank"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        return f"skipped: cannot mount a tmpfs of 64 MB ({mounted.stderr.strip()})", {}
    try:
        with cluster(directory, flags=["--free-space-watermark-bytes", str(16 << 20)]) as servers:
            servers.start()
            trainer = Trainer(servers.slot_map, choice.randrange(1 << 30))
            for i in range(times):
                time.sleep(choice.uniform(0.3, 1))
                with open(disk / "ballast", "wb") as ballast:
                    with contextlib.suppress(OSError):
                        os.posix_fallocate(ballast.fileno(), 0, shutil.disk_usage(disk).free - choice.choice([0, 1 << 20, 12 << 20]))
                time.sleep(40 if i % 50 == 49 else 1)  # the long form: also longer than anyone waits
                trainer.check_alive()
                for name in NAMES:
                    assert servers.running[name].poll() is None, f"{name} died on the full disk:\n{servers.log(name)}"
                check(servers.slot_map, "--check-beside")  # reads go on
                (disk / "ballast").unlink()
            counts = trainer.stop()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert counts.get("refused_for_space", 0) > 0, "no call was refused for space: the disk was never full"
    return f"{times} fills, {counts['refused_for_space']} rounds refused", counts


def check(slot_map, how="--check-only"):
    """Every block against the head's step."""
    result = subprocess.run([BINARIES / "../tests/expected_state", "--slot-map", slot_map, how], capture_output=True, text=True, timeout=90 * TIME_SCALE)
    assert result.returncode == 0, result.stderr


def strike_files(directory, choice, times):
    """Files of the newest checkpoint cut short or with one bit flipped: refused by name, or harmless; never another number."""
    with cluster(directory) as servers:
        servers.start()
        trainer = Trainer(servers.slot_map, choice.randrange(1 << 30))
        time.sleep(2)
        counts = trainer.stop()
        servers.kill()
        intact = directory / "intact"
        shutil.copytree(servers.directory, intact)
        newest = max((intact / "m0/checkpoints").glob("*/committed.json"), key=lambda path: json.loads(path.read_text())["sequence"]).parent
        files = sorted(path.relative_to(intact) for path in newest.rglob("*") if path.is_file() and path.stat().st_size > 0)
        outcomes = collections.Counter()
        for i in range(times):
            for name in NAMES:
                shutil.rmtree(servers.directory / name)
                shutil.copytree(intact / name, servers.directory / name)
            victim = servers.directory / files[i % len(files)]
            data = bytearray(victim.read_bytes())
            position = choice.randrange(len(data))
            if cut := choice.random() < 0.5:
                del data[position:]
            else:
                data[position] ^= 1 << choice.randrange(8)
            victim.write_bytes(data)
            what = f"{victim.relative_to(servers.directory)} {'cut' if cut else 'bit flipped'} at byte {position}"
            for name in NAMES:
                servers.launch(name)
            if servers.wait_ready("m0"):
                assert servers.wait_ready("m1"), servers.log("m1")
                try:
                    check(servers.slot_map)
                except AssertionError as error:
                    raise AssertionError(f"{what}: {error}") from error
                outcomes["harmless"] += 1
            else:
                assert servers.running["m0"].returncode == 1, f"{what}: ended with {servers.running['m0'].returncode}\n{servers.log('m0')}"
                assert newest.name in servers.log("m0"), f"{what}: the log does not name the checkpoint:\n{servers.log('m0')}"
                outcomes["refused"] += 1
            servers.kill()
        assert outcomes["refused"] > 0, "no damage was refused"
    return f"{times} damaged files, {outcomes['refused']} refused, {outcomes['harmless']} harmless", counts


KINDS = {  # name: (function, short, long)
    "points": (strike_points, 1, 20),
    "kills": (strike_kills, 5, 1000),
    "pauses": (strike_pauses, 3, 100),
    "network": (strike_network, 8, 2000),
    "disk": (strike_disk, 2, 500),
    "files": (strike_files, 8, 1000),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    arguments = parser.parse_args()
    for kind, (strike, short, long) in KINDS.items():
        if arguments.only not in (None, kind):
            continue
        choice = random.Random(f"{arguments.seed} {kind}")
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"membank-{kind}-") as directory:
            try:
                struck, counts = strike(pathlib.Path(directory), choice, long if arguments.long else short)
            except BaseException:
                print(f"FAILED {kind}, seed {arguments.seed}. Repeat:\n  MEMBANK_BIN_DIR={BINARIES} {sys.executable} {__file__} --only {kind} "
                      f"--seed {arguments.seed}{' --long' if arguments.long else ''}", flush=True)
                raise
        print(f"{kind}: {struck}; {time.monotonic() - begin:.1f} s; trainer {json.dumps(counts)}", flush=True)


if __name__ == "__main__":
    main()
