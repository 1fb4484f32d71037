#!/usr/bin/env python3
"""Runs serve_bench and generate.py in turn on this machine and prints one table: figure, baseline, ratio, target, held or not.

    tests/bench/serve/compare.py --bench build/bench/serve_bench --anchor FILE [--python PYTHON] [--dtype f32|bf16]
"""
import argparse
import json
import pathlib
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("--bench", required=True)
parser.add_argument("--anchor", required=True)
parser.add_argument("--python", default=sys.executable, help="a Python with torch and transformers")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
options = parser.parse_args()


def rates(command):
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {row["what"]: row["tokens_per_second"] for row in map(json.loads, lines)}


ours = rates([options.bench, "--anchor", options.anchor, "--dtype", options.dtype])
theirs = rates([options.python, str(pathlib.Path(__file__).with_name("generate.py")), "--dtype", options.dtype])

rows = [("decode 1 stream", ours["decode 1 stream"], "transformers generate", theirs["decode 1 stream"], 1.2),
        ("decode 8 streams", ours["decode 8 streams"], "transformers generate", theirs["decode 8 streams"], 1.2),
        ("decode 1 stream, memory", ours["decode 1 stream, memory"], "anchor alone", ours["decode 1 stream"], 0.85),
        ("8 streams, memory, one path", ours["decode 8 streams, memory, one path"], "anchor alone", ours["decode 8 streams"], 0.85),
        ("8 streams on 8 paths", ours["decode 8 streams, memory, 8 paths"], "8 on one path", ours["decode 8 streams, memory, one path"], 0.8),
        ("32 streams on 32 paths", ours["decode 32 streams, memory, 32 paths"], "32 on one path", ours["decode 32 streams, memory, one path"], 0.8)]
print(f"{'figure, ' + options.dtype:32} {'tokens/s':>10} {'baseline':>24} {'tokens/s':>10} {'ratio':>7} {'target':>7} held")
for what, value, baseline, base, target in rows:
    ratio = value / base
    print(f"{what:32} {value:10.1f} {baseline:>24} {base:10.1f} {ratio:7.2f} {target:7.2f} {'yes' if ratio >= target else 'NO'}")
