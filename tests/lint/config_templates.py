#!/usr/bin/env python3
"""The templates in deploy/config equal the defaults of the programs, and read back as them.

    tests/lint/config_templates.py BIN_DIR [--write]
"""
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = ["memory-server", "router", "worker"]


def printed(binary, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MEMBANK_")}
    result = subprocess.run([binary, *arguments, "--print-config"], capture_output=True, text=True, env=environment, check=True)
    return result.stdout.split("\n", 2)[2]  # without the line that names the version


def main():
    binaries = pathlib.Path(sys.argv[1])
    for name in PROGRAMS:
        binary, template = binaries / f"membank-{name}", ROOT / "deploy/config" / f"{name}.toml"
        defaults = printed(binary)
        if "--write" in sys.argv:
            template.write_text(defaults)
        if template.read_text() != defaults:
            sys.exit(f"{template} is not what membank-{name} --print-config prints; after a change of the settings run\n"
                     f"  tests/lint/config_templates.py {binaries} --write")
        if printed(binary, "--config", template) != defaults:
            sys.exit(f"membank-{name} --config {template} does not give the defaults")
    print(f"{len(PROGRAMS)} templates equal the defaults")


if __name__ == "__main__":
    main()
