#!/usr/bin/env python3
"""Writes {smollm2,minilm,llama3,qwen2}.jsonl: texts with the ids and the decoded text that Hugging Face's tokenizers give; and two small
tokenizers of Llama 3's and Qwen2's kinds, each as tokenizer.json and as GGUF. Needs: pip install tokenizers gguf."""
import json
import os
import random

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import reference

here = os.path.dirname(os.path.abspath(__file__))
PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEXTS = [
    "", " ", "  ", "\n", "\t\t x", "a", "Hello, world!", "The atomic number of gold is 79.", "It's we'll they're I'VE don't DON'T l'\u00e9t\u00e9 'S",
    "x  y   z    \n\n\n  end  ", "tab\tnew\r\nline\rreturn\x0bvt\x0cff", "1234567890 3.14159 1,000,000 \u0661\u0662\u0663 \u00b2\u00b3 \u2167 \u00bd",
    "def f(x: int) -> list[str]:\n    return [str(i) for i in range(x)]  # comment\n", "#include <vector>\nint main() { return a->b && c || !d; }\n",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5 A\u030a \u1e69 s\u0323\u0307 \u0130stanbul \u1e9e \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "\u4e2d\u6587\u5206\u8bcd\u6d4b\u8bd5\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3001\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0442\u0435\u043a\u0441\u0442 \u0639\u0631\u0628\u064a \u05e2\u05d1\u05e8\u05d9\u05ea \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "<|im_start|>user\nhi<|im_end|><|endoftext|>", "<|im_start", "a<|endoftext|>b <|endoftext|>", "[CLS] not [MASK] [SEP] [UNK]", "x<tool>y <tool> z",
    "a\u00a0b\u2003c\u180ed\u200be\u2028f\u0085g", "\x00\x01\x02\x7f\ufffd\ue000\U000e0001", "\u00c0\u00ff \U0010ffff", "a" * 300, "ab" * 200, "\u4e2d" * 120, "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "!!!...???---___===***///\\\\\\ $100 50% a@b.c http://x.y/z?q=1#f", "\u2018quoted\u2019 \u201cdouble\u201d \u2014 dash \u2026", "x\n\n\n y \n z\n", "  leading", "trailing  ",
]


def mixtures():
    rng = random.Random(5)
    words = " ".join(TEXTS).split(" ")
    for _ in range(60):
        yield rng.choice([" ", "  ", "\n", ""]).join(rng.choice(words)[:40] for _ in range(rng.randrange(1, 25)))


def write(name, tokenizer):
    with open(os.path.join(here, name + ".jsonl"), "w", encoding="utf-8") as out:
        for text in TEXTS + list(mixtures()):
            special, plain = reference.encode(tokenizer, text, True), reference.encode(tokenizer, text, False)
            out.write(json.dumps({"text": text, "special": special, "plain": plain, "decoded": tokenizer.decode(special, skip_special_tokens=True),
                                  "decoded_all": tokenizer.decode(special, skip_special_tokens=False)}, ensure_ascii=False, separators=(",", ":")) + "\n")


def small(name, digits, normalizer, ignore_merges, pre):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN % digits), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS * 3 + list(mixtures()), trainers.BpeTrainer(
        vocab_size=520, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    if ignore_merges:  # a word that no merges lead to, as ids of Llama 3's tokenizer have
        model = json.loads(tokenizer.to_str())
        model["model"]["vocab"]["zqxj"] = len(model["model"]["vocab"])
        tokenizer = Tokenizer.from_str(json.dumps(model))
        TEXTS.append("zqxj zqxj zqxjs")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    os.makedirs(os.path.join(here, name), exist_ok=True)
    tokenizer.save(os.path.join(here, name, "tokenizer.json"), pretty=False)
    with open(os.path.join(here, name, "tokenizer_config.json"), "w", encoding="utf-8") as out:
        json.dump({"eos_token": "<|im_end|>", "bos_token": {"content": "<|im_start|>"}}, out)
    saved = json.load(open(os.path.join(here, name, "tokenizer.json")))

    writer = gguf.GGUFWriter(os.path.join(here, name, "tokenizer.gguf"), "llama")
    added = {t["id"]: t["special"] for t in saved["added_tokens"]}
    count = tokenizer.get_vocab_size(with_added_tokens=True)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([tokenizer.id_to_token(i) for i in range(count)])
    writer.add_token_types([1 if i not in added else 3 if added[i] else 4 for i in range(count)])
    writer.add_token_merges([" ".join(m) for m in saved["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.token_to_id("<|im_end|>"))
    writer.add_bos_token_id(tokenizer.token_to_id("<|im_start|>"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    write(name, tokenizer)


write("smollm2", reference.smollm2())
write("minilm", reference.load(reference.MINILM))
small("llama3", r"\p{N}{1,3}", None, True, "llama-bpe")
small("qwen2", r"\p{N}", normalizers.NFC(), False, "qwen2")
