"""The Python side of retriever_bench: documents a second of sentence-transformers, one number a line for each line on standard input.

    python sentence_transformers_rate.py MODEL_DIR PAGES.jsonl
"""
import json
import sys
import time

from sentence_transformers import SentenceTransformer

with open(sys.argv[2], encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in file]
model = SentenceTransformer(sys.argv[1], device="cpu")
for _ in sys.stdin:
    start = time.perf_counter()
    model.encode(texts)
    print(len(texts) / (time.perf_counter() - start), flush=True)
