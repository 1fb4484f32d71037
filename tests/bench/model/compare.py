"""Runs model_bench and eager.py in turn and prints both and the ratio.

python compare.py --bench build/bin/model_bench --gguf FILE [--python PYTHON] [--rounds 3] [--dtype bf16 fp32] [--only train_frozen ...]
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys

ALL = ["train_frozen", "train_anchor", "prefill", "decode", "decode_8"]


def rate(command):
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()[-1]
    return json.loads(line)["tokens_per_second"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", default="3")
    parser.add_argument("--dtype", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--only", nargs="+", default=ALL)
    args = parser.parse_args()
    eager = str(pathlib.Path(__file__).with_name("eager.py"))
    print(f"{'tokens/s':24}{'membank':>10}{'eager':>10}{'ratio':>8}")
    for dtype in args.dtype:
        for what in args.only:
            tail = ["--dtype", dtype, "--only", what, "--repeats", args.repeats]
            ours, theirs = [], []
            for _ in range(args.rounds):   # alternate: the machine is shared
                ours.append(rate([args.bench, "--anchor", args.gguf] + tail))
                theirs.append(rate([args.python, eager, "--gguf", args.gguf] + tail))
            a, b = statistics.median(ours), statistics.median(theirs)
            print(f"{dtype + ' ' + what:24}{a:10.1f}{b:10.1f}{a / b:8.2f}", flush=True)


if __name__ == "__main__":
    main()
