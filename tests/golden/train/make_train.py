#!/usr/bin/env python3
"""Writes train.json: ten AdamW steps of the tiny anchor in PyTorch and transformers: with FFN memory, frozen and co-trained; alone, without a bank; and
co-trained by another recipe (z-loss, warm-up - constant - linear schedule, a weight decay of the anchor's own that spares the norms). Every step is
the whole corpus, so the order of sequences does not matter. Run with an environment that has torch, numpy and transformers:

    tests/golden/train/make_train.py
"""
import json
import math
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers

HERE = pathlib.Path(__file__).parent
FAN_OUT, WIDTHS, LAYERS, HIDDEN, SEED = 2, [4, 2], 2, 64, 7
STEPS, WARMUP, LR, MIN_LR, WEIGHT_DECAY, CLIP, BETAS, EPS = 10, 2, 2e-2, 2e-3, 1e-2, 0.5, (0.9, 0.95), 1e-8
Z_LOSS, COOLDOWN, ANCHOR_WEIGHT_DECAY = 1e-2, 4, 0.5   # of the recipe
MASK = 0xFFFFFFFF


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & MASK, (p0 >> 32) ^ c[3] ^ k[1], p0 & MASK]
        k = [(k[0] + 0x9E3779B9) & MASK, (k[1] + 0xBB67AE85) & MASK]
    return c


def truncated_normal(word):
    q = (word - (1 << 32) if word >> 31 else word) * (1 - 2 * 0.02425) / 4294967296.0
    r = q * q
    numerator = (((((-3.969683028665376e+01 * r + 2.209460984245205e+02) * r - 2.759285104469687e+02) * r + 1.383577518672690e+02) * r
                  - 3.066479806614716e+01) * r + 2.506628277459239e+00) * q
    denominator = ((((-5.447609879822406e+01 * r + 1.615858368580409e+02) * r - 1.556989798598866e+02) * r + 6.680131188771972e+01) * r
                   - 1.328068155288572e+01) * r + 1.0
    return numerator / denominator


def initial_block(level, cluster):
    """[layers, 3, r, d]: gate, up, down transposed (common/bank/block_init.h)."""
    r = WIDTHS[level - 1]
    layer_size = 3 * r * HIDDEN
    values = np.zeros(LAYERS * layer_size)
    for e in range(len(values)):
        if e % layer_size < 2 * r * HIDDEN:
            values[e] = truncated_normal(philox((e // 4, 0, level, cluster), (SEED, 0))[e % 4]) / math.sqrt(HIDDEN)
    return torch.tensor(values, dtype=torch.float32).reshape(LAYERS, 3, r, HIDDEN)


def make_sequences():
    generator = random.Random(5)
    sequences = []
    for leaf in (3, 0, 2, 3):
        tokens, ends = [], []
        for length in (generator.randrange(2, 12), 1, generator.randrange(5, 20)):  # one document of a single token: no target
            tokens += [generator.randrange(3, 259) for _ in range(length - 1)] + [0]
            ends.append(len(tokens))
        sequences.append({"leaf": leaf, "tokens": tokens, "document_ends": ends})
    return sequences


def learning_rate(step, recipe):
    if step <= WARMUP:
        return LR * step / WARMUP
    if recipe:
        return LR + (MIN_LR - LR) * max(0, step - (STEPS - COOLDOWN)) / COOLDOWN
    progress = (step - WARMUP - 1) / (STEPS - WARMUP - 1)
    return MIN_LR + (LR - MIN_LR) * 0.5 * (1 + math.cos(math.pi * progress))


def train(anchor_directory, sequences, cotrain, memory=True, recipe=False):
    model = transformers.LlamaForCausalLM.from_pretrained(anchor_directory, dtype=torch.float32, attn_implementation="eager")
    model.requires_grad_(cotrain)
    blocks, active = {}, []
    for sequence in sequences if memory else []:
        for level in (1, 2):
            cluster = sequence["leaf"] // FAN_OUT ** (len(WIDTHS) - level)
            blocks.setdefault((level, cluster), torch.nn.Parameter(initial_block(level, cluster)))

    def with_memory(layer):
        def hook(module, inputs, output):
            for block in active:
                gate, up, down = block[layer]
                output = output + (torch.nn.functional.silu(inputs[0] @ gate.T) * (inputs[0] @ up.T)) @ down
            return output
        return hook

    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(with_memory(index))
    parameters = list(blocks.values()) + (list(model.parameters()) if cotrain else [])
    groups = [{"params": parameters}]
    if recipe:
        groups = [{"params": list(blocks.values())},
                  {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": ANCHOR_WEIGHT_DECAY},
                  {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    losses, norms = [], []
    for step in range(1, STEPS + 1):
        total, z, targets = 0, 0, 0
        for sequence in sequences:
            active[:] = [blocks[level, sequence["leaf"] // FAN_OUT ** (len(WIDTHS) - level)] for level in (1, 2)] if memory else []
            begin = 0
            for end in sequence["document_ends"]:
                tokens = torch.tensor(sequence["tokens"][begin:end])
                begin = end
                if len(tokens) < 2:
                    continue
                logits = model(tokens[None]).logits[0, :-1]
                total = total + torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="sum")
                z = z + Z_LOSS * torch.logsumexp(logits, -1).square().sum()
                targets += len(tokens) - 1
        loss = total / targets
        optimizer.zero_grad()
        (loss + z / targets if recipe else loss).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, CLIP).item())
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses, "gradient_norms": norms}


def main():
    torch.manual_seed(0)
    sequences = make_sequences()
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([sys.executable, HERE.parents[1] / "testing/tiny_anchor.py", directory], check=True)
        result = {"sequences": sequences, "fan_out": FAN_OUT, "widths": WIDTHS, "layers": LAYERS, "hidden": HIDDEN, "seed": SEED, "steps": STEPS,
                  "warmup_steps": WARMUP, "learning_rate": LR, "min_learning_rate": MIN_LR, "weight_decay": WEIGHT_DECAY, "clip": CLIP,
                  "z_loss": Z_LOSS, "cooldown_steps": COOLDOWN, "anchor_weight_decay": ANCHOR_WEIGHT_DECAY,
                  "frozen": train(directory, sequences, False), "cotrain": train(directory, sequences, True),
                  "anchor": train(directory, sequences, True, memory=False), "recipe": train(directory, sequences, True, recipe=True)}
    (HERE / "train.json").write_text(json.dumps(result) + "\n")
    print(*(result[name] for name in ("frozen", "cotrain", "anchor", "recipe")), sep="\n")


if __name__ == "__main__":
    main()
