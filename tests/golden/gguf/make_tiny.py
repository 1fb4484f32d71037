#!/usr/bin/env python3
"""Writes tiny.gguf (the plain tensor types and the first quantised ones, a type that membank does not read, every kind of metadata) with gguf-py, and tiny.safetensors, the same
tensors as gguf-py dequantises them, with the safetensors library. Needs: pip install gguf safetensors numpy."""
import os

import gguf
import numpy as np
from safetensors.numpy import save_file

here = os.path.dirname(os.path.abspath(__file__))
rng = np.random.default_rng(7)
types = gguf.GGMLQuantizationType

writer = gguf.GGUFWriter(os.path.join(here, "tiny.gguf"), "llama")
writer.add_uint8("test.u8", 200)
writer.add_int8("test.i8", -100)
writer.add_uint16("test.u16", 60000)
writer.add_int16("test.i16", -30000)
writer.add_uint32("test.u32", 4000000000)
writer.add_int32("test.i32", -2000000000)
writer.add_uint64("test.u64", 2**62)
writer.add_int64("test.i64", -(2**62))
writer.add_float32("test.f32", 0.5)
writer.add_float64("test.f64", 1e-300)
writer.add_bool("test.bool", True)
writer.add_string("test.string", "na\u00efve \U0001f600")
writer.add_array("test.strings", ["a", "", "\u4e2d"])
writer.add_array("test.ints", [1, -2, 3])
writer.add_array("test.floats", [0.25, -1.5])

expected = {}
for name, kind, shape in [("f32", types.F32, (3, 5)), ("f16", types.F16, (2, 3, 4)), ("bf16", types.BF16, (7,)), ("q8_0", types.Q8_0, (4, 64)),
                          ("q4_0", types.Q4_0, (3, 96)), ("q4_1", types.Q4_1, (5, 32))]:
    values = rng.standard_normal(shape).astype(np.float32)
    if kind == types.F16:  # subnormals, the largest half, both zeros
        values.flat[:5] = [6e-8, -3e-5, 65504.0, 0.0, -0.0]
    data = gguf.quants.quantize(values, kind)
    writer.add_tensor(name, data, raw_shape=data.shape, raw_dtype=kind)
    expected[name] = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(shape)
data = rng.integers(0, 256, (2, 18), dtype=np.uint8)
writer.add_tensor("iq4_nl", data, raw_shape=data.shape, raw_dtype=types.IQ4_NL)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
save_file(expected, os.path.join(here, "tiny.safetensors"), metadata={"made_by": "gguf-py"})
