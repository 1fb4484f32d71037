#!/usr/bin/env python3
"""Banks larger than memory, with real processes: a memory server whose budget is less than a tenth of the bank trains to the same losses and
blocks, bit for bit, as one that keeps everything in RAM; its memory stays within the budget, blocks really went to disk and came back, most of
them because the trainer announced them. A full disk (a small tmpfs, when run as root) stops the trainer with a clear error, serving goes on,
and training goes on, bit-equal, once there is space again.

    tests/integration/spill/spill_test.py
"""
import contextlib
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "testing"))
from local_cluster import EMBEDDER, TIME_SCALE, MemoryServers, free_ports, make_anchor, membank  # noqa: E402

STEPS, FAN_OUT = 40, 5


def prepare(directory):
    make_anchor(directory / "anchor")
    generator = random.Random(3)
    with open(directory / "pages.jsonl", "w", encoding="utf-8") as file:
        for index in range(60):
            words = ["".join(generator.choice("abcdefghij") for _ in range(5)) for _ in range(8)]
            file.write(json.dumps({"id": str(index), "title": words[0], "text": " ".join(words)}) + "\n")
    membank("corpus", "build", "--input", directory / "pages.jsonl", "--tokenizer", directory / "anchor", "--embedder", EMBEDDER, "--fit-tree",
            "--fan-out", FAN_OUT, "--depth", 2, "--seed", 1, "--sequence-length", 128, "--output", directory / "corpus")
    membank("bank", "create", "--bank-id", "test", "--anchor", directory / "anchor", "--tree", directory / "corpus/tree.safetensors", "--widths",
            "4,4", "--dtype", "fp32", "--seed", 1, "--output", directory / "bank.json")
    spec = json.loads((directory / "bank.json").read_text())
    return 3 * spec["layers"] * spec["hidden"] * 4  # parameters of a block, both levels alike


def train_arguments(directory, servers, output):
    return ["train", "--anchor", directory / "anchor", "--corpus", directory / "corpus", "--slot-map", servers.slot_map, "--output", output,
            "--steps", STEPS, "--batch-sequences", 6, "--learning-rate", 1e-2, "--warmup-steps", 5, "--dtype", "fp32", "--seed", 1,
            "--checkpoint-every", 10, "--threads", 1]


def train(directory, servers, output):
    summary = json.loads(membank(*train_arguments(directory, servers, output)).stdout.splitlines()[-1])
    assert summary["finished"], summary
    return losses(output), servers.digests()


def losses(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "the log has gaps or repeats"
    return [(line["loss"], line["gradient_norm"]) for line in lines]


def metrics(port):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return {name: float(value) for name, value in re.findall(r"^(membank_memory_\w+(?:\{[^}]*\})?) (\S+)$", text, re.M)}


def check_equal(expected, got, what):
    for step, (one, other) in enumerate(zip(expected[0], got[0]), 1):
        assert one == other, f"{what}, step {step}: {other} instead of {one}"
    assert expected[1] == got[1], f"{what}: the bank differs: {got[1]} instead of {expected[1]}"


def check_small_budget(directory, parameters, expected):
    budget = int(1.3 * 20 * parameters)  # a step over one block needs 20 bytes per parameter in fp32
    [admin] = free_ports(1)
    with contextlib.closing(MemoryServers(directory / "small", directory / "bank.json", 1,
                                          ["--memory-budget", f"{budget // 1024}KB", "--admin-listen", f"127.0.0.1:{admin}"])) as servers:
        servers.start()
        got = train(directory, servers, directory / "small-run")
        found = metrics(admin)
        bank = got[1]["m0"]["blocks"] * 12 * parameters
    check_equal(expected, got, "small budget")
    assert bank > 10 * budget, f"the bank has {bank} bytes, the budget {budget}"
    assert found["membank_memory_table_resident_bytes"] <= budget, found
    assert found["membank_memory_spilled_blocks_total"] > got[1]["m0"]["blocks"], found
    assert found['membank_memory_disk_reads_total{part="state"}'] > 0, found
    assert found["membank_memory_prefetched_blocks_total"] > 0, found
    print(f"ok  {got[1]['m0']['blocks']} blocks, {bank / budget:.1f} x the budget: losses and blocks are bit-equal; "
          f"{found['membank_memory_spilled_blocks_total']:.0f} spills, {found['membank_memory_prefetched_blocks_total']:.0f} blocks read ahead")


def check_full_disk(directory, parameters, expected):
    """The server's disk is a tmpfs that a file fills; the trainer stops, says why, and goes on from its checkpoint later."""
    if os.geteuid() != 0:
        print("skipped: a full disk needs root, to mount a small tmpfs")
        return
    data = directory / "disk/m0"
    data.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", data]).returncode != 0:
        print("skipped: a full disk needs the right to mount a small tmpfs")
        return
    budget = int(1.3 * 20 * parameters)
    try:
        with contextlib.closing(MemoryServers(directory / "disk", directory / "bank.json", 1,
                                              ["--memory-budget", budget, "--admin-listen", "", "--free-space-watermark-bytes", 8 << 20])) as servers:
            servers.start()
            output = directory / "disk-run"
            trainer = subprocess.Popen([str(word) for word in [pathlib.Path(os.environ["MEMBANK_BIN_DIR"]) / "membank",
                                        *train_arguments(directory, servers, output)]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            deadline = time.monotonic() + 60 * TIME_SCALE
            while not (output / "log.jsonl").exists() or len((output / "log.jsonl").read_text().splitlines()) < 12:
                assert time.monotonic() < deadline and trainer.poll() is None, trainer.communicate()
                time.sleep(0.005)
            fill(data / "ballast")
            _, stderr = trainer.communicate(timeout=120 * TIME_SCALE)
            assert trainer.returncode == 1 and "bytes free" in stderr and "free space and try again" in stderr, stderr
            status = json.loads(membank("bank", "status", "--slot-map", servers.slot_map, "--json").stdout)
            assert status["head_step"] >= 10, status
            log = (directory / "disk/m0.log").read_text()
            (data / "ballast").unlink()
            got = train(directory, servers, output)
    finally:
        subprocess.run(["umount", "-l", data], check=True)
    check_equal(expected, got, "full disk")
    assert "terminate" not in log, log
    print("ok  full disk: the trainer stopped with a clear error, the server went on, and after space came back the run is bit-equal")


def fill(path):
    with open(path, "wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
            file.flush()


def main():
    # In memory where there is such a file system: the test is about order, not about the disk's speed.
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="membank-spill-", dir=root) as name:
        directory = pathlib.Path(name)
        parameters = prepare(directory)
        with contextlib.closing(MemoryServers(directory / "large", directory / "bank.json", 1)) as servers:
            servers.start()
            expected = train(directory, servers, directory / "large-run")
        check_small_budget(directory, parameters, expected)
        check_full_disk(directory, parameters, expected)


if __name__ == "__main__":
    main()
