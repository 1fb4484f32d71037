#!/usr/bin/env python3
"""Fetch rate over 1, 2 and 4 memory servers (processes of their own, loopback) and over block sizes. One JSON object a line.

    servers_and_sizes.py BENCH_DIRECTORY
"""
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "testing"))
from local_cluster import MemoryServers  # noqa: E402

HIDDEN, LAYERS, BYTES = 512, 35, 2  # the 160M anchor of design/numbers.md, bf16
BANK_BYTES, CALL_BYTES, SECONDS = 128 << 20, 32 << 20, 2


def gb_per_second(bench, width, servers):
    """Of a bank of one level whose blocks have `width` inner units."""
    block = 3 * LAYERS * HIDDEN * BYTES * width
    spec = {"anchor_fingerprint": "aa", "bank_id": "scale", "dtype": "BF16", "fan_out": max(8, min(256, BANK_BYTES // block)), "hidden": HIDDEN,
            "layers": LAYERS, "seed": 7, "tree_fingerprint": "bb", "type": "ffn", "widths": [width]}
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "spec.json"
        path.write_text(json.dumps(spec))
        with contextlib.closing(MemoryServers(directory + "/bank", path, count=servers)) as running:
            running.start()
            out = subprocess.run([bench / "scale_bench", running.slot_map, str(SECONDS), str(CALL_BYTES)], check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(out.stdout)
    return result["gb_per_second"], result["block_bytes"]


def main():
    bench = pathlib.Path(sys.argv[1])
    for servers in (1, 2, 4):
        value, block = gb_per_second(bench, 16, servers)
        print(json.dumps({"figure": f"fetch of {block / 1e6:.1f} MB blocks from {servers} server{'s' * (servers > 1)}", "servers": servers, "value": value}), flush=True)
    for width in (1, 4, 16, 64, 256):
        value, block = gb_per_second(bench, width, 1)
        print(json.dumps({"figure": f"fetch of blocks of {block / 1e6:.2f} MB", "value": value}), flush=True)


if __name__ == "__main__":
    main()
