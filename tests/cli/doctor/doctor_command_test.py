#!/usr/bin/env python3
"""`membank doctor` for real, with little to measure: its figures add up, its report says what limits, and it leaves nothing behind."""
import json
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "testing"))
from local_cluster import membank  # noqa: E402

BANK = ["--fan-out", 16, "--widths", "256,64,16", "--layers", 35, "--hidden", 512]


def main():
    with tempfile.TemporaryDirectory(prefix="membank-doctor-") as directory:
        arguments = ["doctor", *BANK, "--directory", directory, "--megabytes", 16]
        report = json.loads(membank(*arguments, "--json").stdout)
        rates = report["rates"]
        assert all(value > 0 for value in rates.values()), rates
        step = {part["name"]: part["seconds"] for part in report["step"]}
        payload = 3.73e9  # the design's example
        assert abs(step["fetch"] * rates["fetch"] / payload - 1) < 0.01, step
        assert len(report["findings"]) == 4, report["findings"]
        assert not list(pathlib.Path(directory).iterdir()), "the doctor left files behind"
        text = membank(*arguments).stdout
        assert "Training: " in text and "limits it" in text, text
        spec = pathlib.Path(directory) / "spec.json"
        spec.write_text(json.dumps({"anchor_fingerprint": "aa", "bank_id": "b", "dtype": "F32", "fan_out": 4, "hidden": 64, "layers": 2, "seed": 1,
                                    "tree_fingerprint": "bb", "type": "ffn", "widths": [8, 4]}))
        assert "bank b" in membank("doctor", "--bank-spec", spec, "--directory", directory, "--megabytes", 16).stdout
        both = membank("doctor", "--bank-spec", spec, "--fan-out", 4, expect=1)
        assert "either --bank-spec, or" in both.stderr, both.stderr
        missing = membank("doctor", *BANK, "--directory", f"{directory}/nowhere", expect=1)
        assert f"{directory}/nowhere" in missing.stderr, missing.stderr
    print("membank doctor: figures, words and a clean end")


if __name__ == "__main__":
    main()
