"""Loads a Llama or Gemma 3 GGUF into transformers through its own converter (from_pretrained would want the package accelerate)."""
import pathlib

from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM)}


def load(path: pathlib.Path, dtype, attention: str):
    parsed = load_gguf_checkpoint(str(path))["config"]
    config_class, model_class = CLASSES[parsed["model_type"]]
    config = config_class(**{k: v for k, v in parsed.items() if not k.startswith("_")}, attn_implementation=attention)
    model = model_class(config)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.to(dtype).eval()
