#!/usr/bin/env python3
"""Compares membank's tokenizers with Hugging Face's and SentencePiece's on >= 10 MB of mixed text from this machine: prints differing
documents and ids (0 expected) and MB/s of both. Usage: compare_large.py DUMP_BINARY [TOKENIZER...] (build target tokenize_dump): without
tokenizers those of SmolLM2, MiniLM and, where deploy/setup --models put it, Gemma 3; else files tokenizer.json, .model or .gguf (kind llama).
Needs: deploy/setup --dev."""
import glob
import gzip
import os
import random
import subprocess
import sys
import tempfile
import time
import unicodedata

import numpy as np

import reference

SEPARATOR = "\x1e"


def files(patterns, limit):
    """Up to `limit` bytes of the files' text; Latin-1 where it is not UTF-8."""
    size = 0
    for path in sorted(p for pattern in patterns for p in glob.glob(pattern, recursive=True) if os.path.isfile(p)):
        data = (gzip.open if path.endswith((".gz", ".dz")) else open)(path, "rb").read(400_000)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("latin-1")
        yield text
        size += len(data)
        if size > limit:
            return


def synthetic():
    rng = random.Random(3)
    assigned = [chr(c) for c in range(1, 0x110000) if unicodedata.category(chr(c)) not in ("Cs", "Cn") and chr(c) != SEPARATOR]
    for i in range(0, len(assigned), 500):
        yield "".join(assigned[i:i + 500])
        yield " ".join(assigned[i:i + 500])
        yield "a".join(assigned[i:i + 500])
    atoms = [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "\u2003", "\u180e", "\u200b", "\u200d", "\ufe0f", "'s", "'S", "'ll", "'t", "don't", "\u2019s", "1", "23",
             "\u0663", "\u00b2", "\u2167", "a", "Abc", "stra\u00dfe", "\u0130", "\u03a3\u03c2", "e\u0301", "\u00e9", "n\u0303", "\u4e2d\u6587", "\u3053\u3093", "\ud55c\uad6d",
             "\u0e20\u0e32\u0e29\u0e32", "\u05e9\u05dc\u05d5\u05dd", "\u0645\u0631", "\u0939\u093f\u0928\u094d\u0926\u0940", "\U0001f600", "\U0001f468\u200d\U0001f469", "\U0001f1e9\U0001f1ea", "<|im_start|>", "<|endoftext|>", "[CLS]", "[SEP]", "<|", "|>",
             "!", "...", "$%", "_", "-", "==", "x" * 120, "\u0000", "\u0001", "\u007f", "\u0085", "\ufffd", "\ue000", "\U000e0001", "\u1e9e", "\u0301"]
    for _ in range(20000):
        yield "".join(rng.choice(atoms) for _ in range(rng.randrange(1, 60)))
    for _ in range(2000):
        yield "".join(rng.choice(assigned) for _ in range(200))


def corpus():
    yield from synthetic()
    yield from files(["/usr/share/dictd/*.dict.dz", "/usr/share/bodr/*.xml"], 3_000_000)
    yield from files(["/usr/lib/python3*/**/*.py"], 3_000_000)
    yield from files(["/usr/share/i18n/locales/*", "/usr/share/unicode/**/*.txt"], 3_000_000)
    yield from files(["/usr/share/doc/**/*"], 3_000_000)
    yield from files(["/usr/include/c++/**/*.h"], 2_000_000)
    yield from files(["/usr/share/perl/**/unicore/*.txt", "/usr/share/perl/**/*.pl", "/usr/share/zoneinfo/*.tab"], 2_000_000)


def compare(name, tokenizer, path, dump, documents, text_path, parse_special):
    with tempfile.NamedTemporaryFile() as out:
        report = subprocess.run([dump, path, text_path, out.name, str(int(parse_special))], check=True, capture_output=True, text=True).stdout
        stream = np.fromfile(out.name, dtype=np.int32)
    start, at, differing, bad_documents, size = time.time(), 0, 0, 0, 0
    for document in documents:
        expected = np.array(reference.encode(tokenizer, document, parse_special), dtype=np.int32)
        got = stream[at + 1:at + 1 + stream[at]]
        at += 1 + int(stream[at])
        size += len(document.encode())
        if not np.array_equal(expected, got):
            bad_documents += 1
            differing += max(len(expected), len(got)) if len(expected) != len(got) else int((expected != got).sum())
            if bad_documents <= 5:
                first = next((i for i, (a, b) in enumerate(zip(expected, got)) if a != b), min(len(expected), len(got)))
                print("  ", repr(document[:40]), first, [tokenizer.id_to_token(int(i)) for i in expected[max(0, first - 3):first + 5]],
                      [tokenizer.id_to_token(int(i)) for i in got[max(0, first - 3):first + 5]])
    seconds = time.time() - start
    print(f"{name} parse_special={parse_special}: {size / 1e6:.1f} MB, {len(documents)} documents, {bad_documents} differ in {differing} ids; "
          f"membank: {report.strip()}; {'SentencePiece' if isinstance(tokenizer, reference.SentencePiece) else 'Hugging Face'} "
          f"{size / 1e6 / seconds:.2f} MB/s", flush=True)
    return bad_documents


def main():
    documents = [d.replace(SEPARATOR, " ") for d in corpus()]
    with tempfile.NamedTemporaryFile() as text:
        text.write(SEPARATOR.join(documents).encode())
        text.flush()
        bad = 0
        judges = [(path, reference.load(path)) for path in sys.argv[2:]]
        if not judges:
            judges = [(reference.SMOLLM2, reference.smollm2()), (reference.MINILM, reference.load(reference.MINILM))]
            if os.path.exists(reference.GEMMA3):
                judges.append((reference.GEMMA3, reference.load(reference.GEMMA3)))
        for path, judge in judges:
            for parse_special in (False,) if isinstance(judge, reference.SentencePiece) else (False, True):
                bad += compare(os.path.basename(os.path.dirname(path)) + "/" + os.path.basename(path), judge, path, sys.argv[1], documents, text.name, parse_special)
    sys.exit(1 if bad else 0)


main()
