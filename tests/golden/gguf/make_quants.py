#!/usr/bin/env python3
"""Writes quants.gguf (random blocks of the quantised types beyond Q4 and Q8) and quants.safetensors, the same tensors as gguf-py dequantises
them. With a path to Gemma 3 270M (deploy/setup --models) prints the sums that tests/common/tensors/gguf_test.cc expects of it.
Needs: pip install gguf safetensors numpy."""
import os
import sys

import gguf
import numpy as np
from safetensors.numpy import save_file

here = os.path.dirname(os.path.abspath(__file__))
types = gguf.GGMLQuantizationType


def write():
    rng = np.random.default_rng(8)
    writer = gguf.GGUFWriter(os.path.join(here, "quants.gguf"), "llama")
    expected = {}
    # Every byte is random (gguf-py cannot quantise to the k-quants) but for the halves, which are numbers of usual size.
    for kind, halves in [(types.Q5_0, (0,)), (types.Q5_1, (0, 2)), (types.Q2_K, (80, 82)), (types.Q3_K, (108,)), (types.Q4_K, (0, 2)),
                         (types.Q5_K, (0, 2)), (types.Q6_K, (208,))]:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (4, size), dtype=np.uint8)
        for at in halves:
            blocks[:, at:at + 2] = rng.standard_normal((4, 1)).astype(np.float16).view(np.uint8)
        data = blocks.reshape(2, -1)
        writer.add_tensor(kind.name, data, raw_shape=data.shape, raw_dtype=kind)
        expected[kind.name] = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(2, 2 * elements)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, os.path.join(here, "quants.safetensors"), metadata={"made_by": "gguf-py"})


def sums(path):
    """Of each type's last tensor: the sum of bits * (index + 1) modulo 2^64."""
    last = {tensor.tensor_type: tensor for tensor in gguf.GGUFReader(path).tensors}
    for kind, tensor in last.items():
        bits = gguf.quants.dequantize(tensor.data, kind).reshape(-1).view(np.uint32).astype(np.uint64)
        print(tensor.name, kind.name, int((bits * np.arange(1, bits.size + 1, dtype=np.uint64)).sum()))


if len(sys.argv) > 1:
    sums(sys.argv[1])
else:
    write()
