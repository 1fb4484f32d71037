"""Loads a Llama GGUF into transformers through its own converter (from_pretrained would want the package accelerate)."""
import pathlib

from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint


def load(path: pathlib.Path, dtype, attention: str):
    parsed = load_gguf_checkpoint(str(path))["config"]
    config = LlamaConfig(**{k: v for k, v in parsed.items() if not k.startswith("_")}, attn_implementation=attention)
    model = LlamaForCausalLM(config)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.to(dtype).eval()
