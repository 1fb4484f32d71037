#!/usr/bin/env python3
"""The rules of the house, checked: who may include whom, every test in the build, every folder in the README's map, every proto item
commented, no stand-in code. Prints each violation as file:line: what, and exits 1 when there is one.

    tests/lint/house.py [SOURCE_DIR]
"""
import pathlib
import re
import sys

# folder -> what its files may include. Words: a folder of ours (with everything below it), or an external group of EXTERNAL.
COMMON = ["common/base", "common/tensors", "common/bank", "common/text", "common/corpus", "common/config", "common/rpc", "common/client"]
ALLOWED = {
    "common/base": ["logging", "json"],
    "common/tensors": ["common/base", "json"],
    "common/bank": ["common/base", "common/tensors", "json"],
    "common/text": ["common/base", "common/tensors", "json", "pcre", "unicode"],
    "common/corpus": ["common/base", "common/text", "json", "compression"],
    "common/config": ["common/base", "cli11", "json"],
    "common/rpc": ["common/base", "common/bank", "common/tensors", "proto", "grpc", "http", "json",
                   "cli11"],
    "common/client": ["common/base", "common/bank", "common/tensors", "common/rpc", "proto", "grpc"],
    "memory_server": ["common/base", "common/tensors", "common/bank", "common/config", "common/rpc", "proto", "grpc", "json", "cli11", "http"],
    "router/retriever": ["common/base", "common/tensors", "common/bank", "common/text", "json"],
    "router/http": ["common/base", "common/bank", "common/tensors", "common/config", "common/text", "common/rpc", "router/http", "router/retriever",
                    "router", "proto", "json", "http"],
    "router": COMMON + ["router", "proto", "grpc", "json", "cli11", "http"],
    "model_worker/kernels": ["common/base", "common/tensors", "torch", "cuda"],
    "model_worker/model": ["common/base", "common/tensors", "common/bank", "model_worker/kernels", "torch", "json"],
    "model_worker/memory": ["common/base", "common/tensors", "common/bank", "common/client", "torch"],
    "model_worker/serve": COMMON[:-2] + ["common/client", "model_worker/kernels", "model_worker/model", "model_worker/memory", "torch", "json"],
    "model_worker/train": COMMON[:-2] + ["common/client", "model_worker/kernels", "model_worker/model", "model_worker/memory", "torch", "json"],
    "model_worker": COMMON + ["model_worker", "proto", "grpc", "json", "cli11", "http"],
    "cli": COMMON + ["router/retriever", "model_worker/model", "model_worker/memory", "model_worker/train", "cli11", "json", "torch"],
}
EXTERNAL = {  # prefix of the include -> group; anything else in <> is the standard library, abseil, fmt or POSIX
    "torch/": "torch", "ATen/": "torch", "c10/": "torch", "caffe2/": "torch", "grpcpp/": "grpc", "grpc/": "grpc", "google/protobuf/": "proto",
    "rocksdb/": "rocksdb", "nlohmann/": "json", "pcre2": "pcre", "utf8proc": "unicode", "unicode/": "unicode", "CLI/": "cli11",
    "httplib": "http", "boost/beast": "http", "spdlog/": "logging", "prometheus/": "logging", "zlib": "compression", "zstd": "compression",
    "cuda": "cuda",
}
# One-file exceptions, each with its reason.
FILE_ALLOWED = {
    "memory_server/rocksdb_store.cc": ["rocksdb"],    # the engine's only door
    "memory_server/patient_file_system.cc": ["rocksdb"],
    "router/retriever/minilm_embedder.cc": ["torch"],  # Torch stays behind embedder.h
}
GENERATED = {"membank/v1/": "proto", "third_party/": "proto"}
TORCH = re.compile(r"^(torch/|ATen/|c10/)")
WIRE = re.compile(r"^(grpcpp/|grpc/|google/protobuf/|membank/v1/|third_party/)|\.pb\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]')
STAND_IN = re.compile(r"\b(TODO|FIXME|XXX|not implemented yet|placeholder)\b")
CODE = (".h", ".cc", ".cu", ".cuh")


def folder_of(path):
    """The longest key of ALLOWED that contains `path`."""
    parts = path.split("/")[:-1]
    while parts:
        if "/".join(parts) in ALLOWED:
            return "/".join(parts)
        parts.pop()
    return None


def group_of(include, root):
    for prefix, group in {**GENERATED, **EXTERNAL}.items():
        if include.startswith(prefix):
            return group
    if (root / include).exists() or "/" in include and (root / include.split("/")[0]).is_dir() and include.split("/")[0] in (
            "common", "memory_server", "router", "model_worker", "cli", "tests"):
        return "/".join(include.split("/")[:-1])
    return None  # standard library and the base vocabulary


def may_include(folder, group, allowed):
    return group is None or group == folder or any(group == word or group.startswith(word + "/") for word in allowed)


def check_includes(root, sources):
    for path in sources:
        folder = folder_of(path)
        includes = [(number, match.group(1)) for number, line in enumerate((root / path).read_text().splitlines(), 1)
                    if (match := INCLUDE.match(line))]
        torch_line = next((number for number, name in includes if TORCH.match(name)), None)
        wire_line = next((number for number, name in includes if WIRE.search(name)), None)
        if torch_line and wire_line:
            yield f"{path}:{max(torch_line, wire_line)}: Torch and protobuf/gRPC headers in one translation unit"
        if folder is None:
            continue
        allowed = ALLOWED[folder] + FILE_ALLOWED.get(path, [])
        for number, name in includes:
            group = group_of(name, root)
            if group and group.startswith("tests"):
                yield f"{path}:{number}: product code includes tests ({name})"
            elif not may_include(folder, group, allowed):
                yield f"{path}:{number}: {folder} may not include {name} (group {group}; allowed: {', '.join(allowed)})"


def check_tests_are_built(root):
    for path in sorted((root / "tests").rglob("*_test.cc")):
        lists = path.parent / "CMakeLists.txt"
        if not lists.exists() or "membank_test(" not in lists.read_text():
            yield f"{path.relative_to(root)}:1: not in the build (no membank_test() in {lists.relative_to(root)})"


def check_readme_map(root):
    readme = (root / "README.md").read_text() if (root / "README.md").exists() else ""
    for folder in list(ALLOWED) + ["proto/membank/v1", "deploy", "tests"]:
        if (root / folder).is_dir() and any((root / folder).iterdir()) and f"`{folder}/`" not in readme:
            yield f"README.md:1: the map of folders misses `{folder}/`"


def check_protos(root):
    """Every message, field, enum, enum value, service and rpc has a comment above it or on its line."""
    item = re.compile(r"^\s*(message|enum|service|rpc|oneof)\s+\w+|^\s*(repeated\s+|optional\s+|map<[^>]+>\s*)?[\w.]*\s*\w+\s*=\s*-?\d+\s*(\[.*\])?;")
    for path in sorted((root / "proto").rglob("*.proto")):
        previous = ""
        for number, line in enumerate(path.read_text().splitlines(), 1):
            skip = re.match(r"^\s*(syntax|package|import|option|reserved)\b", line)
            if not skip and item.match(line) and "//" not in line and not previous.strip().startswith("//"):
                yield f"{path.relative_to(root)}:{number}: no comment: {line.strip()}"
            previous = line


def check_stand_ins(root, sources):
    for path in sources:
        for number, line in enumerate((root / path).read_text().splitlines(), 1):
            if STAND_IN.search(line):
                yield f"{path}:{number}: stand-in code: {line.strip()}"


def check_json(root, sources):
    """Unbounded nesting overflows the stack: JSON is parsed by common/base/json.h alone (and by safetensors.cc, which bounds the depth itself)."""
    for path in sources:
        if path in ("common/base/json.cc", "common/tensors/safetensors.cc"):
            continue
        for number, line in enumerate((root / path).read_text().splitlines(), 1):
            if re.search(r"\b[jJ]son::(parse|accept|sax_parse)\(", line):
                yield f"{path}:{number}: parses JSON without a bound on its depth; use ParseJson of common/base/json.h"


def check_call_roles(root):
    """Who may make a call of the memory service is decided in one table; a new call needs its row."""
    proto, roles = root / "proto/membank/v1/memory.proto", root / "memory_server/access.cc"
    rows = roles.read_text() if roles.exists() else ""
    for number, line in enumerate(proto.read_text().splitlines() if proto.exists() else [], 1):
        match = re.match(r"^\s*rpc (\w+)", line)
        if match and f'{{"{match.group(1)}", CallRole::' not in rows:
            yield f"proto/membank/v1/memory.proto:{number}: {match.group(1)} has no row in kRoles of memory_server/access.cc"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[2]).resolve()
    tops = ("common", "memory_server", "router", "model_worker", "cli")
    sources = sorted(str(path.relative_to(root)) for top in tops for path in (root / top).rglob("*") if path.suffix in CODE)
    problems = [*check_includes(root, sources), *check_tests_are_built(root), *check_readme_map(root), *check_protos(root),
                *check_stand_ins(root, sources), *check_json(root, sources), *check_call_roles(root)]
    print("\n".join(problems))
    print(f"house: {len(sources)} sources, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
