#!/usr/bin/env python3
"""Several ranks with real processes: two ranks equal one rank with the whole batch, bit for bit; a rank that hangs is named, its successors go on,
and when it wakes up it is fenced and changes nothing; SIGTERM on one rank stops all after the same step; RANK and WORLD_SIZE as torchrun sets them.
Loopback, fp32 on the CPU, a tiny anchor, bounded in time.

    tests/integration/train/ranks_test.py
"""
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "testing"))
sys.path.insert(0, str(pathlib.Path(__file__).parent))
from local_cluster import BINARIES, TIME_SCALE, MemoryServers, membank  # noqa: E402
from resume_test import prepare  # noqa: E402

STEPS = 200


def train_arguments(directory, servers, output, *extra):
    return [str(word) for word in [
        BINARIES / "membank", "train", "--anchor", directory / "anchor", "--corpus", directory / "corpus", "--slot-map", servers.slot_map, "--output",
        output, "--steps", STEPS, "--batch-sequences", 4, "--learning-rate", 1e-2, "--min-learning-rate", 1e-3, "--warmup-steps", 5, "--dtype", "fp32",
        "--seed", 1, "--checkpoint-every", 10, "--threads", 1, *extra]]


def start(arguments, **environment):
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})


def finish(process, expect, timeout=60):
    """(stdout, stderr) of a process that ends with `expect`."""
    try:
        stdout, stderr = process.communicate(timeout=timeout * TIME_SCALE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"{process.args} did not end:\n{process.communicate()[1][-3000:]}")
    assert process.returncode == expect, f"{process.args} exited {process.returncode}, expected {expect}:\n{stdout}\n{stderr}"
    return stdout, stderr


def start_ranks(arguments, *extra_of_rank):
    return [start([*arguments, "--world-size", "2", "--rank", str(rank), *map(str, extra)]) for rank, extra in enumerate(extra_of_rank)]


def wait_for_steps(output, count, processes):
    deadline = time.monotonic() + 60 * TIME_SCALE
    while not (output / "log.jsonl").exists() or len((output / "log.jsonl").read_text().splitlines()) < count:
        for process in processes:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def losses(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "the log has gaps or repeats"
    return [(line["loss"], line["gradient_norm"], line["tokens"]) for line in lines]


def one_rank(directory):
    output = directory / "one"
    with contextlib.closing(MemoryServers(directory / "one-bank", directory / "bank.json")) as servers:
        servers.start()
        finish(start(train_arguments(directory, servers, output, "--micro-batch-sequences", 2)), 0)
        return losses(output), servers.digests()


def check_two_ranks(directory, expected):
    output = directory / "two"
    with contextlib.closing(MemoryServers(directory / "two-bank", directory / "bank.json")) as servers:
        servers.start()
        ranks = start_ranks(train_arguments(directory, servers, output), [], [])
        summary = json.loads(finish(ranks[0], 0)[0].splitlines()[-1])
        finish(ranks[1], 0)
        assert summary["finished"], summary
        assert (losses(output), servers.digests()) == expected, "two ranks differ from one"
        assert losses(output)[-1][0] < 0.7 * losses(output)[0][0], "nothing was learned"
    print(f"ok  two ranks: losses, norms and bank of {STEPS} steps equal one rank with the whole batch, bit for bit")


def check_zombie(directory, expected):
    output = directory / "zombie"
    with contextlib.closing(MemoryServers(directory / "zombie-bank", directory / "bank.json")) as servers:
        servers.start()
        arguments = train_arguments(directory, servers, output)
        waiting, zombie = start_ranks(arguments, ["--rank-timeout", 3], ["--rank-timeout", 300])
        try:
            wait_for_steps(output, 15, [waiting, zombie])
            zombie.send_signal(signal.SIGSTOP)
            started = time.monotonic()
            _, stderr = finish(waiting, 1)
            assert "waits for pushes of ranks 1 (of 2)" in stderr, stderr
            seconds = time.monotonic() - started
            assert seconds < 10, seconds
            successors = start_ranks(arguments, [], [])
            wait_for_steps(output, 25, successors)
            zombie.send_signal(signal.SIGCONT)
            _, stderr = finish(zombie, 1)
            assert "is fenced by epoch 2" in stderr, stderr
            summary = json.loads(finish(successors[0], 0)[0].splitlines()[-1])
            finish(successors[1], 0)
        finally:
            zombie.kill()
        assert summary["resumed_from"] >= 10, summary
        assert (losses(output), servers.digests()) == expected, "the zombie left traces"
    print(f"ok  a stopped rank is named after {seconds:.1f} s, its successors go on from step {summary['resumed_from']}, it wakes up fenced; the bank is "
          "bit-equal")


def check_terminate_and_environment(directory, expected):
    output = directory / "terminated"
    with contextlib.closing(MemoryServers(directory / "terminated-bank", directory / "bank.json")) as servers:
        servers.start()
        arguments = train_arguments(directory, servers, output)
        alone = finish(start([*arguments, "--rank-timeout", "1"], RANK="1", WORLD_SIZE="2"), 1)[1]
        assert "rank 1 of 2 waits" in alone and "no run is active" in alone, alone
        ranks = start_ranks(arguments, [], [])
        wait_for_steps(output, 5, ranks)
        ranks[1].terminate()
        summaries = [json.loads(finish(rank, 0)[0].splitlines()[-1]) for rank in ranks]
        done = summaries[0]["steps_done"]
        assert 5 <= done < STEPS and summaries[1]["steps_done"] == done, summaries
        ranks = [start(arguments, RANK=str(rank), WORLD_SIZE="2") for rank in (1, 0)]
        for rank in ranks:
            finish(rank, 0)
        assert (losses(output), servers.digests()) == expected
        refused = finish(start([*arguments[:-2], "--mode", "cotrain"], RANK="0", WORLD_SIZE="2"), 1)[1]
        assert "say where rank 0 is with --master-addr" in refused, refused
    print(f"ok  SIGTERM on rank 1 stops both after step {done}; RANK and WORLD_SIZE resume them")


def main():
    with tempfile.TemporaryDirectory(prefix="membank-ranks-") as name:
        directory = pathlib.Path(name)
        prepare(directory)
        expected = one_rank(directory)
        check_two_ranks(directory, expected)
        check_zombie(directory, expected)
        check_terminate_and_environment(directory, expected)


if __name__ == "__main__":
    main()
