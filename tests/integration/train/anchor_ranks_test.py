#!/usr/bin/env python3
"""Ranks that train an anchor, with real processes over Gloo: two, three and four give the loss curve of one, with a bank (co-trained) and without; a
rank that is killed, or stopped, is named by the others within the rank timeout, and the run goes on from its newest checkpoint; torchrun's
environment starts them. Loopback, fp32 on the CPU, a tiny anchor, bounded in time.

    tests/integration/train/anchor_ranks_test.py
"""
import contextlib
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "testing"))
sys.path.insert(0, str(pathlib.Path(__file__).parent))
from local_cluster import BINARIES, TIME_SCALE, MemoryServers, free_ports  # noqa: E402
from ranks_test import finish, start, wait_for_steps  # noqa: E402
from resume_test import prepare  # noqa: E402

STEPS = 60


def arguments(directory, output, servers, *extra):
    where = ["--mode", "cotrain", "--slot-map", servers.slot_map] if servers else ["--mode", "anchor"]
    return [str(word) for word in [
        BINARIES / "membank", "train", "--anchor", directory / "anchor", "--corpus", directory / "corpus", "--output", output, *where, "--steps", STEPS,
        "--batch-sequences", 4, "--learning-rate", 2e-3, "--min-learning-rate", 1e-4, "--warmup-steps", 5, "--dtype", "fp32", "--seed", 1,
        "--checkpoint-every", 10, "--threads", 1, *extra]]


def start_ranks(command, count, timeout=60):
    """As torchrun starts them."""
    port = free_ports(1)[0]
    return [start([*command, "--rank-timeout", str(timeout)], RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1",
                  MASTER_PORT=str(port)) for rank in range(count)]


def losses(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "the log has gaps or repeats"
    return [(line["loss"], line["gradient_norm"], line["tokens"]) for line in lines]


def assert_same_curve(got, expected, what):
    for step, (one, other) in enumerate(zip(got, expected), 1):
        assert one[2] == other[2], f"{what}, step {step}: {one[2]} tokens instead of {other[2]}"
        assert abs(one[0] - other[0]) <= 1e-5, f"{what}, step {step}: loss {one[0]} instead of {other[0]}"


@contextlib.contextmanager
def bank(directory, name, mode):
    if mode == "anchor":
        yield None
        return
    with contextlib.closing(MemoryServers(directory / f"{name}-bank", directory / "bank.json")) as servers:
        servers.start()
        yield servers


def check_curves(directory, mode, counts):
    with bank(directory, f"{mode}-one", mode) as servers:
        output = directory / f"{mode}-one"
        finish(start(arguments(directory, output, servers)), 0)
    expected = losses(output)
    assert expected[-1][0] < 0.7 * expected[0][0], "nothing was learned"
    for count in counts:
        with bank(directory, f"{mode}-{count}", mode) as servers:
            output = directory / f"{mode}-{count}"
            for rank in start_ranks(arguments(directory, output, servers), count):
                finish(rank, 0)
        assert_same_curve(losses(output), expected, f"{mode}, {count} ranks")
    worst = max(abs(one[0] - other[0]) for one, other in zip(losses(output), expected))
    print(f"ok  {mode}: {', '.join(map(str, counts))} ranks have the {STEPS} losses of one (the last within {worst:.1e}), and its tokens")
    return expected


def check_death(directory, mode, how, victim, timeout, expected):
    """One of three ranks is killed, or stopped; the two others name it; all start again."""
    with bank(directory, f"{mode}-{how.name}", mode) as servers:
        output = directory / f"{mode}-{how.name}"
        ranks = start_ranks(arguments(directory, output, servers), 3, timeout)
        try:
            wait_for_steps(output, 15, ranks)
            ranks[victim].send_signal(how)
            began = time.monotonic()
            said = [finish(rank, 1, timeout + 20)[1] for index, rank in enumerate(ranks) if index != victim]
            seconds = time.monotonic() - began
        finally:
            ranks[victim].kill()
            ranks[victim].communicate()
        assert seconds < (timeout + 20) * TIME_SCALE, seconds
        assert all(f"rank {victim}" in text or f"ranks {victim}" in text for text in said), said
        again = start_ranks(arguments(directory, output, servers), 3)
        summary = json.loads(finish(again[0], 0)[0].splitlines()[-1])
        for rank in again[1:]:
            finish(rank, 0)
        assert summary["finished"] and summary["resumed_from"] >= 10, summary
        assert_same_curve(losses(output), expected, f"{mode}, after {how.name}")
    print(f"ok  {mode}: rank {victim} of 3 ended by {how.name} is named after {seconds:.1f} s; the run goes on from step {summary['resumed_from']} with the same losses")


def main():
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)
    with tempfile.TemporaryDirectory(prefix="membank-anchor-ranks-") as name:
        directory = pathlib.Path(name)
        prepare(directory)
        anchor = check_curves(directory, "anchor", [3])
        cotrain = check_curves(directory, "cotrain", [2, 4])
        check_death(directory, "anchor", signal.SIGKILL, 2, 60, anchor)
        check_death(directory, "anchor", signal.SIGSTOP, 0, 3, anchor)
        check_death(directory, "cotrain", signal.SIGKILL, 1, 10, cotrain)  # it may have died between gradients and push: the servers wait


if __name__ == "__main__":
    main()
