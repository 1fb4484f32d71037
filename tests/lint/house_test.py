#!/usr/bin/env python3
"""Plants one violation of each rule in a small tree and expects the lint to name it; expects a clean tree to pass."""
import pathlib
import subprocess
import sys
import tempfile

HOUSE = pathlib.Path(__file__).with_name("house.py")
MAP = " ".join(f"`{folder}/`" for folder in ("common/base", "common/bank", "memory_server", "router", "proto/membank/v1", "tests", "cli"))

CASES = {  # file -> (contents, what the lint must say)
    "common/bank/a.cc": ("#include <grpcpp/grpcpp.h>\n", "common/bank may not include grpcpp/grpcpp.h"),
    "memory_server/b.cc": ("#include <rocksdb/db.h>\n", "memory_server may not include rocksdb/db.h"),
    "router/c.cc": ('#include <torch/torch.h>\n#include "membank/v1/types.pb.h"\n', "Torch and protobuf/gRPC headers in one translation unit"),
    "cli/d.cc": ('#include "tests/testing/local_cluster.h"\n', "product code includes tests"),
    "tests/common/base/e_test.cc": ("\n", "not in the build"),
    "common/rpc/f.h": ("\n", "the map of folders misses `common/rpc/`"),
    "proto/membank/v1/g.proto": ("// A thing.\nmessage Thing {\n  int32 naked = 1;\n}\n", "no comment: int32 naked = 1;"),
    "common/base/h.cc": ("// TODO later\n", "stand-in code"),
    "common/base/i.cc": ("auto x = nlohmann::json::parse(text);\n", "without a bound on its depth"),
    "proto/membank/v1/memory.proto": ("// S.\nservice S {\n  // Open to all?\n  rpc Open(A) returns (B);\n}\n", "Open has no row in kRoles"),
}


def run(files):
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        for name, contents in {"README.md": MAP, "tests/.keep": "", **files}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(contents)
        result = subprocess.run([sys.executable, HOUSE, root], capture_output=True, text=True)
        return result.returncode, result.stdout


def main():
    failures = 0
    code, output = run({"common/base/ok.cc": '#include "common/base/ok.h"\n#include <vector>\n'})
    if code != 0:
        failures += 1
        print(f"a clean tree fails:\n{output}")
    for name, (contents, expected) in CASES.items():
        code, output = run({name: contents})
        if code != 1 or expected not in output:
            failures += 1
            print(f"{name}: expected '{expected}', exit 1; got exit {code}:\n{output}")
    print(f"house_test: {len(CASES) + 1} cases, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
