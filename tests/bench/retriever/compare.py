#!/usr/bin/env python3
"""Documents a second of router/retriever/minilm_embedder.cc and of sentence-transformers (fp32, same threads), in turns in one run.

    /path/to/python tests/bench/retriever/compare.py BIN_DIR MODEL_DIR PAGES.jsonl [TURNS]
"""
import json
import statistics
import subprocess
import sys
import time

from sentence_transformers import SentenceTransformer


def main():
    bin_dir, model_dir, pages = sys.argv[1:4]
    turns = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    with open(pages, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    model = SentenceTransformer(model_dir, device="cpu")
    model.encode(texts[:8])
    bench = subprocess.Popen([f"{bin_dir}/retriever-bench", model_dir, pages], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ours, theirs = [], []
    for turn in range(turns + 1):  # the first one warms up
        bench.stdin.write("go\n")
        bench.stdin.flush()
        rate = float(bench.stdout.readline())
        start = time.perf_counter()
        model.encode(texts)
        other = len(texts) / (time.perf_counter() - start)
        if turn:
            ours.append(rate)
            theirs.append(other)
    bench.stdin.close()
    bench.wait()
    ratio = statistics.median(a / b for a, b in zip(ours, theirs))
    print(f"MiniLM documents/s | {statistics.median(ours):.1f} | sentence-transformers {statistics.median(theirs):.1f} | ratio {ratio:.2f} | "
          f"target 1.0 | {'held' if ratio >= 1 else 'not held'}")


if __name__ == "__main__":
    main()
