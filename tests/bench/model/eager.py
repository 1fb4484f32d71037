"""The same figures as model_bench.cc from PyTorch eager and transformers: same shapes, same memory, one JSON object per line.

python eager.py --gguf FILE [--dtype bf16|fp32] [--only WHAT]
"""
import argparse
import json
import pathlib
import statistics
import sys
import time

import torch
from transformers import DynamicCache

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2] / "golden/model"))
import gguf_anchor

TOKENS, DOCUMENT, WIDTHS, STEPS, PROMPT = 1008, 84, (64, 32), 32, 64
CONTROL = 80   # tokens of the page that train_control has twice in the batch, with blocks of its own each


def median(repeats, work):
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def add_memory(model, dtype):
    """Blocks [level][path]; sequences beyond the first use the second path's."""
    c = model.config
    blocks = [[(torch.randn(c.num_hidden_layers, 3, r, c.hidden_size) * 0.02).to(dtype).requires_grad_() for _ in range(2)] for r in WIDTHS]
    for i, layer in enumerate(model.model.layers):
        def hook(module, x, y, i=i):
            x = x[0]
            if len(x) != 2 or x.shape[1] != CONTROL:
                return memory(x, [level[0][i] for level in blocks], y)
            return torch.stack([memory(x[s], [level[s][i] for level in blocks], y[s]) for s in range(2)])
        layer.mlp.register_forward_hook(hook)
    return sum(blocks, [])


def memory(x, levels, y):
    for w in levels:
        y = y + (torch.nn.functional.silu(x @ w[0].t()) * (x @ w[1].t())) @ w[2]
    return y


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--gguf", type=pathlib.Path, required=True)
    parser.add_argument("--dtype", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--only")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    dtype = torch.bfloat16 if args.dtype == "bf16" else torch.float32
    # sdpa is transformers' faster choice on the CPU; a block-diagonal mask keeps attention inside documents.
    model = gguf_anchor.load(args.gguf, dtype, "sdpa")
    blocks = add_memory(model, dtype)
    vocabulary = model.config.vocab_size
    tokens = torch.randint(0, vocabulary, (1, TOKENS))
    targets = torch.randint(0, vocabulary, (TOKENS,))
    document = torch.arange(TOKENS) // DOCUMENT
    allowed = (document[:, None] == document[None]) & (torch.arange(TOKENS)[:, None] >= torch.arange(TOKENS)[None])
    mask = torch.zeros(1, 1, TOKENS, TOKENS, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    positions = (torch.arange(TOKENS) % DOCUMENT).unsqueeze(0)

    def report(what, rate):
        print(json.dumps({"what": what, "dtype": args.dtype, "tokens_per_second": round(rate, 1)}), flush=True)

    def train():
        logits = model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits[0]
        torch.nn.functional.cross_entropy(logits.float(), targets).backward()
        for p in list(model.parameters()) + blocks:
            p.grad = None

    def train_control():
        page = tokens[:, :CONTROL].expand(2, CONTROL)
        logits = model(page, use_cache=False).logits.flatten(0, 1)
        torch.nn.functional.cross_entropy(logits.float(), targets[:2 * CONTROL]).backward()
        for b in blocks:
            b.grad = None

    def prefill():
        with torch.no_grad():
            model(tokens, use_cache=True, logits_to_keep=1)

    def decode(sequences):
        with torch.no_grad():
            cache = DynamicCache()
            token = torch.zeros(sequences, 1, dtype=torch.long)
            model(token.expand(sequences, PROMPT), past_key_values=cache, use_cache=True, logits_to_keep=1)
            start = time.perf_counter()
            for _ in range(STEPS):
                token = model(token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
            return time.perf_counter() - start

    wanted = lambda what: args.only in (None, what)
    for what, anchor, work, rows in (("train_frozen", False, train, TOKENS), ("train_control", False, train_control, 2 * CONTROL),
                                     ("train_anchor", True, train, TOKENS)):
        for p in model.parameters():
            p.requires_grad_(anchor)
        if wanted(what):
            report(what, rows / median(args.repeats if rows == TOKENS else 4 * args.repeats, work))
    if wanted("prefill"):
        report("prefill", TOKENS / median(args.repeats, prefill))
    for what, sequences in (("decode", 1), ("decode_8", 8)):
        if wanted(what):
            decode(sequences)
            report(what, STEPS * sequences / statistics.median(decode(sequences) for _ in range(args.repeats)))


if __name__ == "__main__":
    main()
