#!/usr/bin/env python3
"""Tokens per second of transformers' generate() with SmolLM2-135M's shape (random weights), greedy, the same prompts and lengths as
serve_bench.cc. One JSON object per line.

    tests/bench/serve/generate.py [--dtype fp32|bf16] [--prompt N] [--new-tokens N] [--threads N] [--repeats N]
"""
import argparse
import json
import statistics
import time

import torch
import transformers

parser = argparse.ArgumentParser()
parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
parser.add_argument("--prompt", type=int, default=32)
parser.add_argument("--new-tokens", type=int, default=64)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--repeats", type=int, default=3)
options = parser.parse_args()

torch.set_num_threads(options.threads)
config = transformers.LlamaConfig(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
                                  num_key_value_heads=3, max_position_embeddings=8192, rope_theta=100000.0, tie_word_embeddings=True)
torch.manual_seed(0)
model = transformers.LlamaForCausalLM(config).eval().to(torch.bfloat16 if options.dtype == "bf16" else torch.float32)


def run(streams):
    prompts = torch.tensor([[1000 + 37 * t + 11 * i for t in range(options.prompt)] for i in range(streams)])
    begin = time.monotonic()
    out = model.generate(prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=options.new_tokens,
                         min_new_tokens=options.new_tokens, do_sample=False, pad_token_id=0)
    assert out.shape[1] == options.prompt + options.new_tokens
    return time.monotonic() - begin


for streams, what in ((1, "decode 1 stream"), (8, "decode 8 streams")):
    run(streams)
    seconds = statistics.median(run(streams) for _ in range(options.repeats))
    print(json.dumps({"what": what, "dtype": options.dtype, "tokens_per_second": round(streams * options.new_tokens / seconds, 1)}), flush=True)
