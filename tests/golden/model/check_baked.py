"""Do the folders that Bake and SaveAnchor write load in transformers, with the logits of the hooked model?

    MEMBANK_BAKED_DIR=/tmp/baked build/release/tests/model_test --gtest_filter='*Baked*'
    python check_baked.py /tmp/baked
"""
import pathlib
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from make_architectures import ENDS, HERE


def main():
    for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
        if folder.name == "openlm":  # not in transformers
            continue
        golden = load_file(HERE / folder.name / "golden.safetensors")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            logits = torch.cat([model(golden["tokens"][a:b][None]).logits[0] for a, b in zip((0,) + ENDS, ENDS)])
        error = (logits - golden["logits"]).abs().max().item()
        print(f"{folder.name}: {error:.1e}")
        assert error < 1e-5, folder


if __name__ == "__main__":
    main()
