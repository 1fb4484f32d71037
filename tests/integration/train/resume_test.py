#!/usr/bin/env python3
"""Exact resume with real processes: the trainer and both memory servers are killed with SIGKILL together, at random moments, again and again;
then the losses of every step and the blocks of the bank equal, bit for bit, those of a run that nobody disturbed. SIGTERM ends a run with a
checkpoint and exit code 0; a bank of every memory type learns. Loopback, fp32 on the CPU, a tiny anchor, bounded in time.

    tests/integration/train/resume_test.py [--seed N]
"""
import argparse
import contextlib
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "testing"))
from local_cluster import BINARIES, EMBEDDER, TIME_SCALE, MemoryServers, make_anchor, membank  # noqa: E402

STEPS, KILLS = 300, 6


def prepare(directory):
    make_anchor(directory / "anchor")
    generator = random.Random(3)
    with open(directory / "pages.jsonl", "w", encoding="utf-8") as file:
        for topic in ("the planet", "the cheese", "the train", "the poet"):
            for index in range(4):
                name = "".join(generator.choice("abcdefghij") for _ in range(5)).title()
                file.write(json.dumps({"id": name, "title": name, "text": f"{name} is {topic} with the number {generator.randrange(100, 1000)}."}) + "\n")
    membank("corpus", "build", "--input", directory / "pages.jsonl", "--tokenizer", directory / "anchor", "--embedder", EMBEDDER, "--fit-tree",
            "--fan-out", 2, "--depth", 2, "--seed", 1, "--sequence-length", 128, "--output", directory / "corpus")
    membank("bank", "create", "--bank-id", "test", "--anchor", directory / "anchor", "--tree", directory / "corpus/tree.safetensors", "--widths",
            "16,8", "--dtype", "fp32", "--seed", 1, "--output", directory / "bank.json")


def train_arguments(directory, servers, output, mode):
    extra = ["--generic-control"] if mode == "frozen" else ["--generic-probability", 0.2]
    return [str(word) for word in [
        "train", "--anchor", directory / "anchor", "--corpus", directory / "corpus", "--slot-map", servers.slot_map, "--output", output, "--mode", mode,
        "--steps", STEPS, "--batch-sequences", 2, "--learning-rate", 1e-2, "--min-learning-rate", 1e-3, "--warmup-steps", 10, "--dtype", "fp32",
        "--seed", 1, "--checkpoint-every", 20, "--threads", 1, *extra]]


def losses(output):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "the log has gaps or repeats"
    return [(line["loss"], line.get("loss_generic"), line["gradient_norm"], line["tokens"]) for line in lines]


def bank_digests(servers):
    return servers.digests()


def newest_checkpoint(output):
    return max((output / "checkpoints").glob("*/manifest.json"), key=lambda path: json.loads(path.read_text())["step"]).parent


def anchor_bytes(output):
    weights = newest_checkpoint(output) / "anchor/model.safetensors"
    return weights.read_bytes() if weights.exists() else None


def undisturbed(directory, mode):
    output = directory / f"straight-{mode}"
    with contextlib.closing(MemoryServers(directory / f"straight-{mode}-bank", directory / "bank.json")) as servers:
        servers.start()
        started = time.monotonic()
        summary = json.loads(membank(*train_arguments(directory, servers, output, mode)).stdout.splitlines()[-1])
        assert summary["finished"] and summary["steps_done"] == STEPS, summary
        return losses(output), bank_digests(servers), anchor_bytes(output), time.monotonic() - started


def disturbed(directory, mode, seconds, generator):
    """Kills everything KILLS times, after random times; the last start runs to the end."""
    output = directory / f"killed-{mode}"
    kills = []
    with contextlib.closing(MemoryServers(directory / f"killed-{mode}-bank", directory / "bank.json")) as servers, \
            open(directory / f"train-{mode}.log", "ab") as log:
        arguments = [BINARIES / "membank", *train_arguments(directory, servers, output, mode)]
        for _ in range(KILLS):
            servers.start()
            trainer = subprocess.Popen(arguments, stdout=log, stderr=log)
            time.sleep(generator.uniform(0.1, 0.35 * seconds))
            trainer.kill()
            servers.kill()
            code = trainer.wait()
            assert code in (-signal.SIGKILL, 0), (directory / f"train-{mode}.log").read_text()[-3000:]
            log_file = output / "log.jsonl"
            kills.append(len(log_file.read_text().splitlines()) if log_file.exists() else 0)
        servers.start()
        membank(*train_arguments(directory, servers, output, mode))
        if mode == "cotrain":
            check_damage_is_found(servers, output, train_arguments(directory, servers, output, mode))
        return losses(output), bank_digests(servers), anchor_bytes(output), kills


def check_damage_is_found(servers, output, arguments):
    """A flipped bit in what the trainer keeps beside a checkpoint: `checkpoint verify` names the file, and nothing goes on from it."""
    verify = ["checkpoint", "verify", "--slot-map", servers.slot_map, "--run", output]
    assert "is whole" in membank(*verify).stdout
    file = newest_checkpoint(output) / "anchor_optimizer.safetensors"
    good = file.read_bytes()
    file.write_bytes(good[:-100] + bytes([good[-100] ^ 1]) + good[-99:])
    assert str(file) in membank(*verify, expect=1).stdout
    refused = membank(*arguments, expect=1)
    assert "is damaged" in refused.stderr and str(file) in refused.stderr, refused.stderr
    file.write_bytes(good)
    assert "is whole" in membank(*verify).stdout


def check_bit_equal(directory, mode, generator):
    expected_losses, expected_digests, expected_anchor, seconds = undisturbed(directory, mode)
    got_losses, got_digests, got_anchor, kills = disturbed(directory, mode, seconds, generator)
    for step, (expected, got) in enumerate(zip(expected_losses, got_losses), 1):
        assert expected == got, f"{mode}, step {step}: {got} instead of {expected}; killed after steps {kills}"
    assert expected_digests == got_digests, f"{mode}: the bank differs: {got_digests} instead of {expected_digests}"
    assert all(digest["blocks"] > 0 for digest in got_digests.values()), got_digests
    assert expected_anchor == got_anchor and (got_anchor is not None) == (mode == "cotrain"), f"{mode}: the anchor differs"
    assert expected_losses[-1][0] < 0.7 * expected_losses[0][0], "nothing was learned"
    print(f"ok  {mode}: {STEPS} steps, everything killed after steps {kills}: losses, bank{' and anchor' if got_anchor else ''} are bit-equal")


def check_terminate(directory):
    """SIGTERM: the step ends, a checkpoint is written, exit 0; other settings are refused; the same command goes on."""
    output = directory / "terminated"
    with contextlib.closing(MemoryServers(directory / "terminated-bank", directory / "bank.json")) as servers:
        servers.start()
        arguments = train_arguments(directory, servers, output, "frozen")
        trainer = subprocess.Popen([BINARIES / "membank", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60 * TIME_SCALE
        while not (output / "log.jsonl").exists() or len((output / "log.jsonl").read_text().splitlines()) < 5:
            assert time.monotonic() < deadline and trainer.poll() is None, trainer.communicate()
            time.sleep(0.01)
        trainer.terminate()
        stdout, stderr = trainer.communicate(timeout=60 * TIME_SCALE)
        assert trainer.returncode == 0, stderr
        summary = json.loads(stdout.splitlines()[-1])
        assert not summary["finished"] and 0 < summary["steps_done"] < STEPS, summary
        assert "goes on from there" in stderr, stderr
        refused = membank(*["0.02" if word == "0.01" else word for word in arguments], expect=1)
        assert "learning-rate was 0.01, is now 0.02" in refused.stderr, refused.stderr
        finished = json.loads(membank(*arguments).stdout.splitlines()[-1])
        assert finished["finished"] and finished["resumed_from"] == summary["steps_done"], finished
        status = json.loads(membank("bank", "status", "--slot-map", servers.slot_map, "--json").stdout)
        assert status["head_step"] == STEPS and status["touched_blocks"] > 0, status
        published = json.loads(membank("bank", "publish", "--slot-map", servers.slot_map, "--version", "v1", "--json").stdout)
        assert published["checkpoint"] == finished["checkpoint"], (published, finished)
        assert json.loads(membank("bank", "status", "--slot-map", servers.slot_map, "--json").stdout)["versions"] == [{"name": "v1", "dtype": "F32"}]
        missing = membank("bank", "publish", "--slot-map", servers.slot_map, "--checkpoint", "none-such", "--version", "v2", expect=1)
        assert "none-such" in missing.stderr, missing.stderr
    print(f"ok  SIGTERM after step {summary['steps_done']}: checkpoint, exit 0, resumed, published")


def check_bank_commands(directory):
    """Sizes by the paper's formulas, and what bad input gets."""
    base = ["bank", "create", "--anchor", directory / "anchor", "--tree", directory / "corpus/tree.safetensors", "--dtype", "fp32"]
    facts = json.loads(membank(*base, "--widths", "16,8", "--output", directory / "spec.json", "--json").stdout)
    unit = 3 * facts["spec"]["layers"] * facts["spec"]["hidden"]
    assert facts["fetched_parameters"] == unit * (16 + 8) and facts["bank_parameters"] == unit * (2 * 16 + 4 * 8), facts
    assert json.loads((directory / "spec.json").read_text()) == facts["spec"]
    keys = json.loads(membank(*base, "--widths", "16,8", "--memory-type", "kv", "--memory-layers", "late", "--output", directory / "kv.json", "--json").stdout)
    assert keys["spec"]["type"] == "kv" and keys["spec"]["memory_layers"] == list(range(facts["spec"]["layers"]))[facts["spec"]["layers"] // 2:], keys
    unit = 2 * len(keys["spec"]["memory_layers"]) * keys["spec"]["heads"] * keys["spec"]["head_dim"]
    assert keys["fetched_parameters"] == unit * (16 + 8) and keys["hash"] != facts["hash"], keys
    for arguments, expected in (
            ([*base, "--widths", "16", "--output", directory / "x.json"], "has 2 levels"),
            ([*base, "--widths", "0,0", "--output", directory / "x.json"], "width"),
            ([*base, "--widths", "16,8", "--memory-type", "lora", "--output", directory / "x.json"], "known: ffn, lora_qk, lora_vo, lora_ffn, kv"),
            ([*base, "--widths", "16,8", "--memory-layers", "0,9", "--output", directory / "x.json"], "no layer 9"),
            (["bank", "slots", "init", "--server", "m0", "--output", directory / "x.json"], "expected ID=ADDRESS"),
            (["bank", "slots", "init", "--server", "m0=a:1", "--server", "m0=b:1", "--output", directory / "x.json"], "m0")):
        refused = membank(*arguments, expect=1)
        assert expected in refused.stderr, refused.stderr
        assert not (directory / "x.json").exists()
    misspelled = membank("train", "--anchor", directory / "anchor", "--corpus", directory / "corpus", "--memory-servers", "127.0.0.1:1", "--output",
                         directory / "never", "--steps", 1, "--learning-rat", "1", expect=2)
    assert "--learning-rate" in misspelled.stderr, misspelled.stderr
    print("ok  bank create and slots init: sizes, refusals")


def check_memory_types(directory):
    """A bank of every other type learns through real servers."""
    arguments = ("--memory-type", "lora-qk"), ("--memory-type", "lora-vo"), ("--memory-type", "lora-ffn", "--memory-layers", "late"), ("--memory-type", "kv")
    for number, words in enumerate(arguments):
        spec, output = directory / f"type-{number}.json", directory / f"type-{number}"
        membank("bank", "create", "--anchor", directory / "anchor", "--tree", directory / "corpus/tree.safetensors", "--widths", "16,8", *words, "--output", spec)
        with contextlib.closing(MemoryServers(directory / f"type-{number}-bank", spec)) as servers:
            servers.start()
            command = train_arguments(directory, servers, output, "frozen")
            command[command.index("--steps") + 1] = "40"
            membank(*command)
        steps = [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]
        before, after = sum(steps[:5]) / 5, sum(steps[-5:]) / 5
        assert after < 0.97 * before, (words, before, after)
        print(f"ok  {words[1]}: 40 steps through real servers, loss {before:.3f} -> {after:.3f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory(prefix="membank-resume-") as name:
        directory = pathlib.Path(name)
        prepare(directory)
        check_bank_commands(directory)
        check_memory_types(directory)
        check_terminate(directory)
        check_bit_equal(directory, "frozen", generator)
        check_bit_equal(directory, "cotrain", generator)


if __name__ == "__main__":
    main()
