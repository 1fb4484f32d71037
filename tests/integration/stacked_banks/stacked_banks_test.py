#!/usr/bin/env python3
"""A public and a private bank stacked on one anchor, with real processes over mutual TLS: two clusters of memory servers, a worker that may read
both banks, one that may read only the public one, one that has only the public one, and routers with both trees and HTTP. Effects add; whoever
may not read the private bank gets, bit for bit (fp32, greedy, log-probabilities), the answer of the public one alone and is told so; rights that
are given and taken take effect within the lease; one bank changes its version alone. Loopback, a tiny anchor, bounded in time.

    tests/integration/stacked_banks/stacked_banks_test.py
"""
import contextlib
import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "testing"), str(ROOT / "integration/train"), str(ROOT / "integration/bank_use")]
import resume_test  # noqa: E402
from bank_use_test import Program  # noqa: E402
from local_cluster import BINARIES, EMBEDDER, TIME_SCALE, MemoryServers, membank  # noqa: E402

LEASE = 1.0  # seconds
PROMPTS = ["The planet", "A poet with the number", "The train to"]


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """Certificates for 127.0.0.1, each with a name of its own."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=authority", "-keyout",
                directory / "ca.key", "-out", directory / "ca.crt")

    def tls(self, name):
        """The settings with which a program shows itself as spiffe://t/NAME."""
        certificate, key = self.directory / f"{name}.crt", self.directory / f"{name}.key"
        if not certificate.exists():
            (self.directory / f"{name}.ext").write_text(f"subjectAltName=IP:127.0.0.1,URI:spiffe://t/{name}\n")
            openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out",
                    self.directory / f"{name}.csr")
            openssl("x509", "-req", "-in", self.directory / f"{name}.csr", "-CA", self.directory / "ca.crt", "-CAkey", self.directory / "ca.key",
                    "-CAcreateserial", "-days", "2", "-extfile", self.directory / f"{name}.ext", "-out", certificate)
        return ["--tls-certificate", certificate, "--tls-key", key, "--tls-authority", self.directory / "ca.crt"]


def prepare_private(directory, anchor):
    """Another corpus, tree and bank beside the same anchor."""
    directory.mkdir()
    (directory / "anchor").symlink_to(anchor)
    generator = random.Random(4)
    with open(directory / "pages.jsonl", "w", encoding="utf-8") as file:
        for topic in ("salary", "contract", "password"):
            for index in range(4):
                text = f"The {topic} of colleague {index} is {generator.randrange(1000)}."
                file.write(json.dumps({"id": f"{topic}{index}", "title": topic, "text": text}) + "\n")
    membank("corpus", "build", "--input", directory / "pages.jsonl", "--tokenizer", anchor, "--embedder", EMBEDDER, "--fit-tree", "--fan-out", 3,
            "--depth", 1, "--seed", 2, "--sequence-length", 128, "--output", directory / "corpus")
    membank("bank", "create", "--bank-id", "private", "--anchor", anchor, "--tree", directory / "corpus/tree.safetensors", "--widths", "24",
            "--dtype", "fp32", "--seed", 2, "--output", directory / "bank.json")


def train(directory, servers, steps):
    """Publishes v1 after 20 steps, v2 after 40, ..."""
    resume_test.STEPS = steps
    membank(*resume_test.train_arguments(directory, servers, directory / "run", "frozen"), "--keep-checkpoints", 3)
    checkpoints = json.loads(membank("checkpoint", "list", "--slot-map", servers.slot_map, "--json").stdout)
    for checkpoint in checkpoints:
        membank("bank", "publish", "--slot-map", servers.slot_map, "--checkpoint", checkpoint["id"], "--version", f"v{checkpoint['step'] // 20}")


def post(base, body):
    request = urllib.request.Request(f"{base}/v1/completions", json.dumps({"model": "x", **body}).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60 * TIME_SCALE) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def ask(base, prompt, memory, tokens=24):
    """(what was said: tokens and their log-probabilities, the reply's memory)"""
    status, reply = post(base, {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "logprobs": 0, "memory": memory})
    assert status == 200, (status, reply)
    logprobs = reply["choices"][0]["logprobs"]
    return (logprobs["token_ids"], logprobs["token_logprobs"]), reply["memory"]


class Stack:
    """The processes under test; `both`, `stranger` and `alone` are base URLs of routers in front of one worker each."""

    def __init__(self, directory, stack):
        self.directory, self.authority = directory, Authority(directory / "certificates")
        resume_test.prepare(directory)
        prepare_private(directory / "private", directory / "anchor")
        self.public = stack.enter_context(contextlib.closing(MemoryServers(directory / "bank", directory / "bank.json")))
        self.private = stack.enter_context(contextlib.closing(MemoryServers(directory / "private/bank", directory / "private/bank.json")))
        for home, servers, steps in ((directory, self.public, 20), (directory / "private", self.private, 40)):
            servers.start()
            train(home, servers, steps)
            servers.kill()
            servers.arguments += [str(word) for word in (*self.authority.tls("server"), "--administrators", "spiffe://t/admin")]
            servers.start()
        trees = ["--tree", directory / "corpus/tree.safetensors", "--tree", directory / "private/corpus/tree.safetensors", "--embedder", EMBEDDER]
        stacked = ["--stacked-slot-map", self.private.slot_map, "--stacked-bank-version", "v1"]
        self.workers = {}
        for name, identity, banks, finds in (("both", "alice", stacked, trees), ("stranger", "eve", stacked, trees), ("alone", "eve", [], [])):
            worker = stack.enter_context(contextlib.closing(Program(
                directory, f"worker-{name}", "membank-worker", "--anchor", directory / "anchor", "--slot-map", self.public.slot_map, "--bank-version",
                "v1", *banks, "--dtype", "fp32", "--threads", 1, "--block-lease-ms", int(1000 * LEASE), *self.authority.tls(identity))))
            self.workers[name] = worker.addresses["listen"]
            router = stack.enter_context(contextlib.closing(Program(
                directory, f"router-{name}", "membank-router", "--worker", self.workers[name], *finds, "--http-listen", "127.0.0.1:0",
                "--worker-poll-ms", 50, *self.authority.tls("router"))))
            setattr(self, name, f"http://{router.addresses['http']}")
        deadline = time.monotonic() + 30 * TIME_SCALE
        for base in (self.both, self.stranger, self.alone):
            while len(json.loads(urllib.request.urlopen(f"{base}/v1/models").read())["data"]) == 0:
                assert time.monotonic() < deadline
                time.sleep(0.02)

    def own(self, servers, *readers):
        """The whole bank gets an owner and these readers."""
        membank("bank", "owner", "set", "root", "--owner", "spiffe://t/owner", *(word for name in readers for word in ("--reader", f"spiffe://t/{name}")),
                "--slot-map", servers.slot_map, *self.authority.tls("admin"))

    def disown(self, servers):
        membank("bank", "owner", "set", "root", "--owner", "", "--slot-map", servers.slot_map, *self.authority.tls("admin"))

    def use(self, version):
        workers = [word for name in ("both", "stranger") for word in ("--worker", self.workers[name])]
        report = json.loads(membank("bank", "use", version, "--bank", "private", *workers, "--json", *self.authority.tls("admin")).stdout)
        assert report["changed"] and [worker["now"] for worker in report["workers"]] == [version] * 2, report


def wait_until(condition, what):
    """Within the lease, and some time for the machine; how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < (LEASE + 5) * TIME_SCALE, what
        time.sleep(0.02)
    return time.monotonic() - begin


def left_out(base):
    return ask(base, PROMPTS[0], {}, 1)[1]["banks"][1]["left_out"]


def check_effects_add(cluster):
    """Before anybody owns anything: both workers say the same with both banks, and each bank alone something else. Returns what was said."""
    said = {}
    for prompt in PROMPTS:
        both, memory = ask(cluster.both, prompt, {})
        public, private = memory["banks"]
        assert (memory["bank"], public["bank"], private["bank"]) == ("test", "test", "private"), memory
        assert public["left_out"] is None and private["left_out"] is None and private["blocks"] == [f"1/{private['path']}"], memory
        assert len(public["distances"]) == 2 and len(private["distances"]) == 1, memory
        assert (public["bank_version"], private["bank_version"]) == ("v1", "v1"), memory
        assert ask(cluster.stranger, prompt, {})[0] == both
        paths = {"test": public["path"], "private": private["path"]}
        assert ask(cluster.both, prompt, {"paths": paths})[0] == both
        alone, memory = ask(cluster.alone, prompt, {"path": public["path"]})
        assert "banks" not in memory, memory
        for chosen in ({"banks": ["test"]}, {"path": public["path"]}, {"paths": {"test": public["path"]}}):
            only_public, memory = ask(cluster.both, prompt, chosen)
            assert only_public == alone and memory["banks"][1]["left_out"] == "not_asked_for", (chosen, memory)
        only_private, memory = ask(cluster.both, prompt, {"banks": ["private"]})
        assert memory["path"] == "none" and memory["banks"][0]["left_out"] == "not_asked_for", memory
        neither = ask(cluster.both, prompt, {"mode": "none"})[0]
        assert len({json.dumps(answer) for answer in (both, alone, only_private, neither)}) == 4, "the banks change nothing"
        said[prompt] = {"both": both, "alone": alone}
    status, reply = post(cluster.both, {"prompt": "x", "memory": {"banks": ["secret"]}})
    assert status == 400 and "the banks served here are: test, private" in reply["error"]["message"], reply
    print(f"ok  {len(PROMPTS)} prompts: the paths of both banks found by text, effects add, each bank chosen by name")
    return said


def check_rights(cluster, said):
    cluster.own(cluster.private, "alice")
    took = wait_until(lambda: left_out(cluster.stranger) == "no_rights", "the right is still there")
    for prompt in PROMPTS:
        answer, memory = ask(cluster.stranger, prompt, {})
        assert answer == said[prompt]["alone"], f"{prompt}: {answer} instead of {said[prompt]['alone']}"
        assert memory["banks"][1]["left_out"] == "no_rights" and memory["banks"][1]["blocks"] == [], memory
        answer, memory = ask(cluster.both, prompt, {})
        assert answer == said[prompt]["both"] and memory["banks"][1]["left_out"] is None, memory
    print(f"ok  a right that was taken was gone after {took:.2f} s: bit-equal to the worker that has only the public bank, and the reader's "
          "answers are as before")


def check_versions(cluster, said):
    cluster.use("v2")
    for prompt in PROMPTS:
        answer, memory = ask(cluster.both, prompt, {})
        assert answer != said[prompt]["both"], prompt
        assert [bank["bank_version"] for bank in memory["banks"]] == ["v1", "v2"], memory
        assert ask(cluster.stranger, prompt, {})[0] == said[prompt]["alone"]
    cluster.use("v1")
    for prompt in PROMPTS:
        assert ask(cluster.both, prompt, {})[0] == said[prompt]["both"]
    print("ok  the private bank went to v2 and back alone")


def check_gained(cluster, said):
    cluster.own(cluster.private, "alice", "eve")
    took = wait_until(lambda: left_out(cluster.stranger) is None, "the right is not there")
    for prompt in PROMPTS:
        assert ask(cluster.stranger, prompt, {})[0] == said[prompt]["both"]
    print(f"ok  a right that was given was there after {took:.2f} s")


def check_first_bank_refuses(cluster, said):
    """No right to the first bank is an error, as it is without stacked banks."""
    cluster.own(cluster.public, "alice")

    def refused():
        status, reply = post(cluster.stranger, {"prompt": PROMPTS[0], "max_tokens": 1})
        return status != 200 and "is neither its owner nor one of its readers" in reply["error"]["message"]

    wait_until(refused, "the first bank's refusal is no error")
    assert ask(cluster.both, PROMPTS[0], {})[0] == said[PROMPTS[0]]["both"]
    cluster.disown(cluster.public)
    print("ok  a first bank that refuses is an error")


def check_one_name_twice(cluster):
    result = subprocess.run([BINARIES / "membank-worker", "--anchor", cluster.directory / "anchor", "--slot-map", cluster.public.slot_map,
                             "--stacked-slot-map", cluster.public.slot_map, "--listen", "127.0.0.1:0", "--admin-listen", "",
                             *map(str, cluster.authority.tls("alice"))], capture_output=True, text=True, timeout=60 * TIME_SCALE)
    assert result.returncode == 1 and "both banks are named test" in result.stderr + result.stdout, result
    print("ok  one bank twice is refused at start")


def main():
    with tempfile.TemporaryDirectory(prefix="membank-stacked-") as name, contextlib.ExitStack() as stack:
        cluster = Stack(pathlib.Path(name), stack)
        said = check_effects_add(cluster)
        check_rights(cluster, said)
        check_versions(cluster, said)
        check_gained(cluster, said)
        check_first_bank_refuses(cluster, said)
        check_one_name_twice(cluster)


if __name__ == "__main__":
    main()
