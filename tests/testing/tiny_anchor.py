#!/usr/bin/env python3
"""Writes a tiny random Llama with a byte-level tokenizer as a Hugging Face directory, with the standard library alone, so that whole-system
tests need no download: 2 layers, hidden 64, 4 heads, 256 bytes + 3 special tokens.

    tests/testing/tiny_anchor.py OUTPUT_DIR [--seed N]
"""
import argparse
import array
import json
import os
import random
import struct

HIDDEN, LAYERS, HEADS, KV_HEADS, INNER = 64, 2, 4, 2, 128
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_characters():
    """GPT-2's printable character for every byte, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            characters[byte] = chr(byte)
        else:
            characters[byte] = chr(256 + extra)
            extra += 1
    return [characters[byte] for byte in range(256)]


def write_tokenizer(directory):
    vocabulary = {token: index for index, token in enumerate(SPECIAL + byte_characters())}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                          "special": True} for index, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary, "merges": []},
    }
    with open(f"{directory}/tokenizer.json", "w", encoding="utf-8") as file:
        json.dump(tokenizer, file, ensure_ascii=False)
    return len(vocabulary)


def write_safetensors(path, tensors):
    header, offset = {}, 0
    for name, (shape, values) in tensors.items():
        size = 4 * len(values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors.values():
            file.write(array.array("f", values).tobytes())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("output_dir")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    os.makedirs(arguments.output_dir, exist_ok=True)
    vocabulary = write_tokenizer(arguments.output_dir)
    head = HIDDEN // HEADS
    with open(f"{arguments.output_dir}/config.json", "w", encoding="utf-8") as file:
        json.dump({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
                   "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": head, "intermediate_size": INNER,
                   "vocab_size": vocabulary, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                   "hidden_act": "silu", "tie_word_embeddings": True, "torch_dtype": "float32", "bos_token_id": 0, "eos_token_id": 0}, file)
    generator = random.Random(arguments.seed)

    def normal(*shape):
        count = shape[0] * shape[1]
        deviation = shape[1] ** -0.5
        return list(shape), [generator.gauss(0, deviation) for _ in range(count)]

    ones = ([HIDDEN], [1.0] * HIDDEN)
    tensors = {"model.embed_tokens.weight": normal(vocabulary, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors[prefix + "input_layernorm.weight"] = ones
        tensors[prefix + "self_attn.q_proj.weight"] = normal(HEADS * head, HIDDEN)
        tensors[prefix + "self_attn.k_proj.weight"] = normal(KV_HEADS * head, HIDDEN)
        tensors[prefix + "self_attn.v_proj.weight"] = normal(KV_HEADS * head, HIDDEN)
        tensors[prefix + "self_attn.o_proj.weight"] = normal(HIDDEN, HEADS * head)
        tensors[prefix + "post_attention_layernorm.weight"] = ones
        tensors[prefix + "mlp.gate_proj.weight"] = normal(INNER, HIDDEN)
        tensors[prefix + "mlp.up_proj.weight"] = normal(INNER, HIDDEN)
        tensors[prefix + "mlp.down_proj.weight"] = normal(HIDDEN, INNER)
    tensors["model.norm.weight"] = ones
    write_safetensors(f"{arguments.output_dir}/model.safetensors", tensors)


if __name__ == "__main__":
    main()
