"""Writes tests/golden/model/gguf/*.gguf: the tiny models of architectures/ in fp32 as llama.cpp's convert_hf_to_gguf.py lays them out (names, q and k
of llama permuted for adjacent-pair RoPE, 1 added to gemma3's norms, q|k|v of gptneox stacked, llama3's RoPE scaling as rope_freqs). Where
transformers reads the architecture's GGUF itself (all but gptneox), its tensors must be those of the model: an independent reading of the format.

Run from anywhere: python make_gguf.py. Needs torch, transformers, safetensors, gguf.
"""
import json
import math

import gguf
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from make_architectures import HERE

STEMS = {"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "attention.query_key_value": "attn_qkv", "attention.dense": "attn_output",
         "mlp.dense_h_to_4h": "ffn_up", "mlp.dense_4h_to_h": "ffn_down", "post_attention_layernorm": "ffn_norm"}
GEMMA = {**STEMS, "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "gpt_neox.embed_in": "token_embd",
         "gpt_neox.final_layer_norm": "output_norm", "embed_out": "output"}


def name_of(name, stems):
    stem, kind = name.rsplit(".", 1)
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    layer, rest = stem.split(".layers.")[1].split(".", 1)
    return f"blk.{layer}.{stems[rest]}.{kind}"


def convert(folder, arch):
    config = json.loads((HERE / folder / "config.json").read_text())
    tensors = load_file(HERE / folder / "model.safetensors")
    path = HERE.parent / "gguf" / f"{folder}.gguf"
    path.parent.mkdir(exist_ok=True)
    heads, kv = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    rope = config["rope_parameters"]
    if arch == "gptneox":
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        writer.add_parallel_residual(config["use_parallel_residual"])
        writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
    else:
        writer.add_head_count_kv(kv)
        writer.add_key_length(head_dim)
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if arch == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
    if rope.get("rope_type") == "llama3":  # as Llama 3.1's, whatever the tiny model has: the parameters are recognised by these numbers
        inverse = [rope["rope_theta"] ** (-2 * i / head_dim) for i in range(head_dim // 2)]
        fast = [min(1, max(0, (8192 * f / (2 * math.pi) - 1) / 3)) for f in inverse]
        writer.add_tensor("rope_freqs.weight", torch.tensor([1 / ((1 - s) / 8 + s) for s in fast]).numpy())
    for name, tensor in tensors.items():
        stored = name_of(name, GEMMA if arch == "gemma3" else STEMS)
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            n = heads if "q_proj" in name else kv
            tensor = tensor.reshape(n, 2, tensor.shape[0] // n // 2, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)
        if arch == "gemma3" and "norm" in name:
            tensor = tensor + 1
        if "query_key_value" in name:
            tensor = tensor.reshape(heads, 3, head_dim, -1).swapaxes(0, 1).reshape(tensor.shape)
        writer.add_tensor(stored, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if arch != "gptneox":
        model = AutoModelForCausalLM.from_pretrained(HERE / folder)
        read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
        for name, tensor in tensors.items():
            assert torch.allclose(torch.as_tensor(read[name]), tensor, atol=1e-6), (folder, name)
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    for folder, arch in (("llama3", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("gemma3", "gemma3"), ("gpt_neox", "gptneox")):
        convert(folder, arch)
