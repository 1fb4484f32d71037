#!/usr/bin/env python3
"""`membank bank use` with real processes: two memory servers, two workers and a router answer a steady load while the bank's version goes
from v1 to v2 and back. No request fails, every answer says its version and has the tokens that this version alone gives (greedy, fp32), and
answers that were being made when the version changed keep theirs. A version that is not there and a worker that is away are named, with what
the others serve, and change nothing. Prints the time of each change. Loopback, a tiny anchor, bounded in time.

    tests/integration/bank_use/bank_use_test.py
"""
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "testing"), str(ROOT / "integration/train")]
import resume_test  # noqa: E402
from local_cluster import BINARIES, TIME_SCALE, MemoryServers, membank  # noqa: E402

CLIENTS = 6
QUESTIONS = [(prompt, path) for prompt in ("The planet", "A poet with the number") for path in ("0.0", "0.1", "1.0", "1.1")]


def publish_two_versions(directory, servers):
    """v1: after 20 steps, v2: after 60."""
    resume_test.STEPS = 60
    membank(*resume_test.train_arguments(directory, servers, directory / "run", "frozen"), "--keep-checkpoints", 3)
    checkpoints = json.loads(membank("checkpoint", "list", "--slot-map", servers.slot_map, "--json").stdout)
    ids = {checkpoint["step"]: checkpoint["id"] for checkpoint in checkpoints}
    for version, step in (("v1", 20), ("v2", 60)):
        membank("bank", "publish", "--slot-map", servers.slot_map, "--checkpoint", ids[step], "--version", version)


class Program:
    def __init__(self, directory, name, program, *arguments):
        ready = directory / f"{name}.ready"
        with open(directory / f"{name}.log", "ab") as log:
            self.process = subprocess.Popen([BINARIES / program, *map(str, arguments), "--ready-file", ready, "--listen", "127.0.0.1:0",
                                             "--admin-listen", ""], stdout=log, stderr=log)
        deadline = time.monotonic() + 60 * TIME_SCALE
        while not ready.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, (directory / f"{name}.log").read_text()[-3000:]
            time.sleep(0.02)
        self.addresses = json.loads(ready.read_text())

    def close(self):
        self.process.kill()
        self.process.wait()


def ask(base, prompt, path, tokens):
    """(bank version, what was said)"""
    body = {"model": "x", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "logprobs": 0, "memory": {"path": path}}
    request = urllib.request.Request(f"{base}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60 * TIME_SCALE) as reply:
        answer = json.loads(reply.read())
    return answer["memory"]["bank_version"], (answer["choices"][0]["text"], answer["choices"][0]["logprobs"]["token_ids"])


class Load:
    """Clients that ask without a pause; each answer is kept with its version and times."""

    def __init__(self, base):
        self.base, self.answers, self.failures, self.stop = base, [], [], threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(number,)) for number in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def run(self, number):
        at = number
        while not self.stop.is_set():
            question, tokens = QUESTIONS[at % len(QUESTIONS)], 40 if at % 3 else 200
            begin = time.monotonic()
            try:
                version, said = ask(self.base, *question, tokens)
                self.answers.append((version, question, tokens, said, begin, time.monotonic()))
            except Exception as error:  # noqa: BLE001: any failure of a request is the finding
                self.failures.append(repr(error))
            at += 1

    def wait_for(self, count):
        deadline, goal = time.monotonic() + 60 * TIME_SCALE, len(self.answers) + count
        while len(self.answers) < goal and not self.failures:
            assert time.monotonic() < deadline, f"{len(self.answers)} answers"
            time.sleep(0.005)

    def finish(self):
        self.stop.set()
        for thread in self.threads:
            thread.join()


def use(version, *arguments, expect=0):
    result = membank("bank", "use", version, *arguments, "--json", expect=expect)
    return json.loads(result.stdout), result.stderr


def check_changes(base, router):
    """v1 -> v2 -> v1 under load; what was answered."""
    load, changes = Load(base), []
    for version in ("v2", "v1"):
        load.wait_for(30)
        begin = time.monotonic()
        report, _ = use(version, "--router", router)
        end = time.monotonic()
        assert report["changed"] and [worker["now"] for worker in report["workers"]] == [version] * 2, report
        assert {worker["before"] for worker in report["workers"]} == {"v1" if version == "v2" else "v2"}, report
        changes.append((version, begin, end, report["milliseconds"]))
    load.wait_for(30)
    load.finish()
    assert not load.failures, load.failures[:3]
    kept = 0
    for version, begin, end, milliseconds in changes:
        late = [answer for answer in load.answers if answer[4] > end and all(answer[4] < other for _, other, _, _ in changes if other > end)]
        assert late and {answer[0] for answer in late} == {version}, f"after the change to {version}: {[answer[0] for answer in late]}"
        first = min(answer[4] for answer in load.answers if answer[0] == version and answer[4] > begin)
        kept += sum(answer[0] != version and answer[4] < first < answer[5] for answer in load.answers)
        print(f"ok  to {version}: {milliseconds:.1f} ms on both workers, the command {1000 * (end - begin):.0f} ms")
    print(f"ok  {len(load.answers)} answers, 0 failed; {kept} ended with the version they began with after the other one was in use")
    return load.answers


def check_answers(base, router, answers):
    """Every answer is that of its version alone."""
    alone = {}
    for version in ("v1", "v2"):
        use(version, "--router", router)
        for tokens in (40, 200):
            for question in QUESTIONS:
                named, alone[version, question, tokens] = ask(base, *question, tokens)
                assert named == version
    differ = sum(alone["v1", question, 40] != alone["v2", question, 40] for question in QUESTIONS)
    assert differ > len(QUESTIONS) / 2, f"the versions say the same: only {differ} questions tell them apart"
    for version, question, tokens, said, _, _ in answers:
        assert said == alone[version, question, tokens], f"{version} {question}: {said} instead of {alone[version, question, tokens]}"
    print(f"ok  each has the tokens of its version alone; the versions differ in {differ} of {len(QUESTIONS)} questions")


def check_refusals(base, router, workers):
    addresses = [worker.addresses["listen"] for worker in workers]
    report, error = use("v9", "--router", router, expect=1)
    assert [worker["now"] for worker in report["workers"]] == ["v2"] * 2 and not report["changed"], report
    for part in (*addresses, '"v9" is not on every memory server; these are: v1, v2', "no worker was changed"):
        assert part in error, error
    workers[1].close()
    report, error = use("v1", "--router", router, expect=1)
    assert f"worker {addresses[1]} cannot use v1" in error and addresses[0] not in error, error
    assert {worker["address"]: worker["now"] for worker in report["workers"]} == {addresses[0]: "v2", addresses[1]: "unknown"}, report
    assert use("v1", "--worker", addresses[0])[0]["changed"]
    assert ask(base, *QUESTIONS[0], 1)[0] == "v1", "the router goes on with the worker that is left"
    print("ok  a version that is not there and a worker that is away are named and change nothing")


def main():
    with tempfile.TemporaryDirectory(prefix="membank-bank-use-") as name, contextlib.ExitStack() as stack:
        directory = pathlib.Path(name)
        resume_test.prepare(directory)
        servers = stack.enter_context(contextlib.closing(MemoryServers(directory / "bank", directory / "bank.json")))
        servers.start()
        publish_two_versions(directory, servers)
        workers = [stack.enter_context(contextlib.closing(Program(
            directory, f"worker{i}", "membank-worker", "--anchor", directory / "anchor", "--slot-map", servers.slot_map, "--bank-version", "v1",
            "--dtype", "fp32", "--threads", 1))) for i in range(2)]
        addresses = [word for worker in workers for word in ("--worker", worker.addresses["listen"])]
        router = stack.enter_context(contextlib.closing(Program(
            directory, "router", "membank-router", *addresses, "--http-listen", "127.0.0.1:0", "--worker-poll-ms", 50))).addresses
        base = f"http://{router['http']}"
        deadline = time.monotonic() + 30 * TIME_SCALE
        while len(json.loads(urllib.request.urlopen(f"{base}/v1/models").read())["data"]) == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        answers = check_changes(base, router["listen"])
        check_answers(base, router["listen"], answers)
        check_refusals(base, router["listen"], workers)


if __name__ == "__main__":
    main()
