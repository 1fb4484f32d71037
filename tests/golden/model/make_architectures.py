"""Writes tests/golden/model/architectures: for every architecture beside Llama a tiny random model (config.json, model.safetensors, fp32) and
golden.safetensors: tokens of three packed documents, logits and loss with and without an FFN memory, every gradient, ten AdamW steps, and how far
transformers in bf16 is from fp32. transformers (fp32, eager attention) is the oracle; OpenLM, which it lacks, is written out below in plain torch
after mlfoundations/open_lm. What membank splits into parts (query_key_value, in_proj, w12) is split here, "name[part]".

Run from anywhere: python make_architectures.py. Needs torch, transformers, safetensors. Each saved folder is loaded again from disk.
"""
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig,
                          LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

HERE = pathlib.Path(__file__).resolve().parent / "architectures"
WIDTH = 5
ENDS = (29, 33, 48)
SIZES = dict(vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
             initializer_range=0.2, attn_implementation="eager")


class OpenLm(torch.nn.Module):
    """open_lm/model.py with gain-only LayerNorm, qk-norm over the full width, rotary embedding in halves, xformers' SwiGLU."""

    def __init__(self, config):
        super().__init__()
        c, self.config = config, config
        weight = lambda *shape: torch.nn.Parameter(torch.randn(shape) * 0.2)
        gain = lambda n: torch.nn.Parameter(1 + torch.randn(n) * 0.2)
        width = c["n_heads"] * c["head_dim"]
        self.p = torch.nn.ParameterDict()
        add = lambda name, parameter: self.p.update({name.replace(".", "/"): parameter})
        add("model.tok_embeddings.weight", weight(c["vocab_size"], c["dim"]))
        for i in range(c["n_layers"]):
            at = f"model.layers.{i}."
            add(at + "attention.in_proj.weight", weight(3 * width, c["dim"]))
            add(at + "attention.out_proj.weight", weight(c["dim"], width))
            add(at + "attention.q_norm.weight", gain(width))
            add(at + "attention.k_norm.weight", gain(width))
            add(at + "feed_forward.w12.weight", weight(2 * c["hidden_dim"], c["dim"]))
            add(at + "feed_forward.w3.weight", weight(c["dim"], c["hidden_dim"]))
            add(at + "attention_norm.weight", gain(c["dim"]))
            add(at + "ffn_norm.weight", gain(c["dim"]))
        add("model.norm.weight", gain(c["dim"]))
        add("model.output.weight", weight(c["vocab_size"], c["dim"]))
        self.memory = [None] * c["n_layers"]

    def named(self):
        return [(name.replace("/", "."), p) for name, p in self.p.items()]

    def forward(self, tokens):
        c, p = self.config, {name: w for name, w in self.named()}
        h, dh, n = c["n_heads"], c["head_dim"], len(tokens)
        norm = lambda x, name: F.layer_norm(x, x.shape[-1:], p[name], None, c["norm_eps"])
        inverse = 1.0 / c["rope_theta"] ** (torch.arange(0, dh, 2).float() / dh)
        angle = torch.outer(torch.arange(n).float(), inverse)
        cos, sin = torch.cat([angle, angle], 1).cos(), torch.cat([angle, angle], 1).sin()
        cos, sin = cos.to(p["model.norm.weight"].dtype), sin.to(p["model.norm.weight"].dtype)
        turn = lambda x: x * cos + torch.cat([-x[..., dh // 2:], x[..., :dh // 2]], -1) * sin
        heads = lambda x: x.view(n, h, dh).transpose(0, 1)
        x = p["model.tok_embeddings.weight"][tokens]
        for i in range(c["n_layers"]):
            at = f"model.layers.{i}."
            q, k, v = (norm(x, at + "attention_norm.weight") @ p[at + "attention.in_proj.weight"].t()).chunk(3, -1)
            q, k = turn(heads(norm(q, at + "attention.q_norm.weight"))), turn(heads(norm(k, at + "attention.k_norm.weight")))
            a = F.scaled_dot_product_attention(q, k, heads(v), is_causal=True).transpose(0, 1).reshape(n, h * dh)
            x = x + a @ p[at + "attention.out_proj.weight"].t()
            y = norm(x, at + "ffn_norm.weight")
            gate, up = (y @ p[at + "feed_forward.w12.weight"].t()).chunk(2, -1)
            out = (F.silu(gate) * up) @ p[at + "feed_forward.w3.weight"].t()
            if self.memory[i] is not None:
                out = out + self.memory[i](y)
            x = x + out
        return norm(x, "model.norm.weight") @ p["model.output.weight"].t()


def memory_ffn(act, w):
    return lambda x: (act(x @ w[0].t()) * (x @ w[1].t())) @ w[2]


class Model:
    """One face for transformers' models and OpenLm: logits of packed documents, each alone, with or without the memory."""

    def __init__(self, module, activation):
        self.module, self.activation = module, activation

    def named(self):
        if isinstance(self.module, OpenLm):
            return self.module.named()
        head = "embed_out.weight" if "NeoX" in type(self.module).__name__ else "lm_head.weight"   # as save_pretrained names it
        return [(head if name == "lm_head.weight" else name, p) for name, p in self.module.named_parameters()]

    def layers(self):
        return self.module.config["n_layers"] if isinstance(self.module, OpenLm) else self.module.config.num_hidden_layers

    def logits(self, documents, block=None):
        slices = None if block is None else block.view(self.layers(), 3, WIDTH, SIZES["hidden_size"])
        out, handles = [], []
        if isinstance(self.module, OpenLm):
            self.module.memory = [None] * self.layers() if block is None else [memory_ffn(self.activation, w) for w in slices]
            return torch.cat([self.module(d) for d in documents])
        if block is not None:
            base = self.module.gpt_neox if hasattr(self.module, "gpt_neox") else self.module.model
            for layer, w in zip(base.layers, slices):
                add = memory_ffn(self.activation, w)
                handles.append(layer.mlp.register_forward_hook(lambda m, x, y, add=add: y + add(x[0])))
        for d in documents:
            out.append(self.module(d.unsqueeze(0)).logits[0])
        for handle in handles:
            handle.remove()
        return torch.cat(out)


def split(name, tensor):
    """As AnchorWeights::Named names the parts of packed tensors."""
    if "query_key_value" in name:
        heads = SIZES["num_attention_heads"]
        parts = tensor.view(heads, 3, tensor.shape[0] // heads // 3, -1)
        return {f"{name}[{i}]": parts[:, i].reshape(tensor.shape[0] // 3, *tensor.shape[1:]) for i in range(3)}
    for packed, n in (("in_proj", 3), ("w12", 2)):
        if packed in name:
            return {f"{name}[{i}]": part for i, part in enumerate(tensor.chunk(n, 0))}
    return {name: tensor}


def write(folder, module, bf16, activation):
    folder = HERE / folder
    folder.mkdir(parents=True, exist_ok=True)
    model = Model(module, activation)
    for name, p in model.named():
        if not isinstance(module, OpenLm) and ("norm" in name):
            torch.nn.init.normal_(p, 0.0 if "Gemma" in type(module).__name__ or "bias" in name else 1.0, 0.2)
        elif name.endswith("bias"):
            torch.nn.init.normal_(p, 0.0, 0.2)
    if isinstance(module, OpenLm):
        save_file({k: v.detach().contiguous() for k, v in model.named()}, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(module.config, indent=1) + "\n")
    else:
        module.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)

    tokens = torch.randint(0, 64, (ENDS[-1],))
    documents = [tokens[a:b] for a, b in zip((0,) + ENDS, ENDS)]
    targets = torch.cat([torch.cat([d[1:], torch.tensor([-100])]) for d in documents])
    block = (torch.randn(model.layers() * 3 * WIDTH * 24) * 0.2).requires_grad_()
    loss = lambda logits: F.cross_entropy(logits.float(), targets, ignore_index=-100)
    out = {"tokens": tokens, "targets": targets, "block": block}
    plain = model.logits(documents)
    out["plain_logits"], out["plain_loss"] = plain, loss(plain).reshape(1)
    logits = model.logits(documents, block)
    out["logits"], out["loss"] = logits, loss(logits).reshape(1)
    loss(logits).backward()
    out["gradient.block"] = block.grad.clone()
    for name, p in model.named():
        for part, gradient in split(name, p.grad).items():
            out["gradient." + part] = gradient.clone()

    bf16 = Model(bf16(folder), activation)
    with torch.no_grad():
        rounded = bf16.logits(documents, block.detach().bfloat16())
        out["bf16_error"] = (rounded.float() - logits).pow(2).mean().sqrt().reshape(1)

    optimizer = torch.optim.AdamW([p for _, p in model.named()], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        step = loss(model.logits(documents, block.detach()))
        step.backward()
        optimizer.step()
        losses.append(step.item())
    out["adamw_losses"] = torch.tensor(losses)
    save_file({k: v.detach().contiguous() for k, v in out.items()}, folder / "golden.safetensors")
    print(folder.name, "loss", out["plain_loss"].item(), out["loss"].item(), "->", losses[-1])


def transformers_model(folder, cls, config, activation):
    torch.manual_seed(3)
    config.architectures = [cls.__name__]
    module = cls(config).float()
    bf16 = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="eager")
    write(folder, module, bf16, activation)


def openlm():
    torch.manual_seed(3)
    config = {"architectures": ["OpenLMforCausalLM"], "model_type": "openlm", "dim": 24, "n_layers": 2, "n_heads": 4, "head_dim": 10, "hidden_dim": 40,
              "vocab_size": 64, "seq_len": 64, "norm_eps": 1e-5, "model_norm": "gain_only_layer_norm", "apply_qk_norm": True, "rope_theta": 100000.0,
              "ffn_type": "swiglu", "positional_embedding_type": "rotary", "weight_tying": False}

    def bf16(path):
        model = OpenLm(config)
        stored = load_file(path / "model.safetensors")
        for name, p in model.named():
            p.data = stored[name].bfloat16()
        return model
    write("openlm", OpenLm(config), bf16, F.silu)


def main():
    torch.set_num_threads(1)
    gelu_tanh = lambda x: F.gelu(x, approximate="tanh")
    scaled = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    transformers_model("llama3", LlamaForCausalLM, LlamaConfig(**SIZES, num_key_value_heads=2, rope_parameters=scaled, tie_word_embeddings=True,
                                                               attention_bias=True, mlp_bias=True), F.silu)
    transformers_model("llama_linear", LlamaForCausalLM, LlamaConfig(**SIZES, num_key_value_heads=2, tie_word_embeddings=False, rope_parameters={
        "rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}), F.silu)
    transformers_model("qwen2", Qwen2ForCausalLM, Qwen2Config(**SIZES, num_key_value_heads=2, tie_word_embeddings=True), F.silu)
    transformers_model("qwen3", Qwen3ForCausalLM, Qwen3Config(**SIZES, num_key_value_heads=2, head_dim=10, tie_word_embeddings=False), F.silu)
    transformers_model("gemma3", Gemma3ForCausalLM, Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=10, query_pre_attn_scalar=12, sliding_window=7,
                                                                    layer_types=["sliding_attention", "full_attention"]), gelu_tanh)
    transformers_model("gpt_neox", GPTNeoXForCausalLM, GPTNeoXConfig(**SIZES, rotary_pct=0.34, use_parallel_residual=True), F.silu)
    transformers_model("gpt_neox_sequential", GPTNeoXForCausalLM, GPTNeoXConfig(**SIZES, rotary_pct=1.0, use_parallel_residual=False, hidden_act="gelu_new"), F.silu)
    openlm()


if __name__ == "__main__":
    main()
