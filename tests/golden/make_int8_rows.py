#!/usr/bin/env python3
"""Makes int8_rows.json: a small block's payload as int8 with a scale per row, layer by layer, by numpy alone. For tests/common/bank/payload_test.cc.

Run: python tests/golden/make_int8_rows.py
"""
import json
import pathlib

import numpy

LAYERS, WIDTH, HIDDEN = 2, 3, 10
ROWS = 3 * WIDTH  # of a layer: gate, up and down


def quantise(layer):
    """[ROWS, HIDDEN] fp32 -> scales [ROWS] fp32, elements [ROWS, HIDDEN] int8: symmetric, the largest of a row is +-127, ties to even."""
    largest = numpy.abs(layer).max(axis=1)
    scales = (largest / numpy.float32(127)).astype(numpy.float32)
    inverse = numpy.divide(numpy.float32(127), largest, out=numpy.zeros_like(largest), where=largest > 0)
    elements = numpy.clip(numpy.rint(layer * inverse[:, None]), -127, 127).astype(numpy.int8)
    return scales, elements


random = numpy.random.default_rng(11)
values = random.standard_normal((LAYERS, ROWS, HIDDEN), dtype=numpy.float32)
values *= (10.0 ** numpy.linspace(-6, 3, LAYERS * ROWS).astype(numpy.float32)).reshape(LAYERS, ROWS, 1)
values[0, 4] = 0                                                            # a row of zeros
values[1, 2] = numpy.array([127, -127, 0.5, 1.5, -2.5, 63.5, 0, 1, -1, 126.5], dtype=numpy.float32)  # ties

payload, read = b"", []
for layer in values:
    scales, elements = quantise(layer)
    payload += scales.astype("<f4").tobytes() + elements.tobytes()
    read.append(elements.astype(numpy.float32) * scales[:, None])
golden = {"layers": LAYERS, "width": WIDTH, "hidden": HIDDEN, "values": values.flatten().tolist(), "payload": payload.hex(),
          "read": numpy.stack(read).flatten().tolist()}
(pathlib.Path(__file__).parent / "int8_rows.json").write_text(json.dumps(golden) + "\n")
