#!/usr/bin/env python3
"""Writes minilm.json: embeddings of varied texts by sentence-transformers (fp32), the judge of router/retriever/minilm_embedder.cc.

    /path/to/python tests/golden/minilm.py MODEL_DIR tests/golden/minilm.json
"""
import json
import sys

from sentence_transformers import SentenceTransformer

TEXTS = [
    "The atomic number of ruthenium is",
    "Hydrogen is the chemical element with atomic number 1 and symbol H.",
    "a",
    "   leading and   inner\twhite\nspace   ",
    "Ångström, naïve café, Zürich; ĀĂĄ ǆ ﬁnally",
    "漢字とかな、한국어 텍스트, русский текст, ελληνικά",
    "emoji 😀👩‍👩‍👧 and symbols ∑∫√ € £",
    "def main(argv):\n    return {k: v for k, v in argv.items() if v is not None}  # code",
    "supercalifragilisticexpialidocious" * 5,
    "3.14159265358979 1,000,000 10^-9 0x7fff",
    "UPPER lower MiXeD don't won't can't it's",
    "Question? Answer! (Brackets) [square] {curly} <angle> \"quotes\" 'single' — dashes – and … dots",
    "[CLS] special words in the text [SEP] [MASK]",
    "zinc " * 100,
    " ".join(f"word{i} of a long text that is cut at two hundred and fifty-six tokens." for i in range(120)),
    "x" * 101 + " a word of more than one hundred characters",
    "The quick brown fox jumps over the lazy dog. " * 20,
    "".join(f"Sentence number {i} says that the element melts at {i * 7} K. " for i in range(200)),
]


def main():
    model_dir, output = sys.argv[1:]
    model = SentenceTransformer(model_dir, device="cpu")
    embeddings = model.encode(TEXTS, batch_size=1)
    rows = [{"text": text, "embedding": [round(float(value), 8) for value in row]} for text, row in zip(TEXTS, embeddings)]
    with open(output, "w", encoding="utf-8") as file:
        json.dump(rows, file, ensure_ascii=False)


if __name__ == "__main__":
    main()
