#!/usr/bin/env python3
"""Writes common/text/bert_table.inc: how Hugging Face's BertNormalizer and BertPreTokenizer class every code point. They carry tables of an
older Unicode version than utf8proc's, so the classes are asked of the library itself. Needs: pip install tokenizers."""
import os

from tokenizers import __version__
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

off = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
clean = BertNormalizer(**{**off, "clean_text": True})
chinese = BertNormalizer(**{**off, "handle_chinese_chars": True})
accents = BertNormalizer(**{**off, "strip_accents": True})
words = BertPreTokenizer()


def kind(c):
    cleaned = clean.normalize_str(c)
    if cleaned == "":
        return "kDropped"
    if cleaned == " ":
        return "kSpace"
    if accents.normalize_str(c) == "":
        return "kMark"
    if len(words.pre_tokenize_str("a" + c + "a")) == 3:
        return "kPunctuation"
    if chinese.normalize_str(c) == " " + c + " ":
        return "kIdeograph"
    return None


ranges = []
for code in range(0x110000):
    if 0xD800 <= code < 0xE000:
        continue
    k = kind(chr(code))
    if k is None:
        continue
    if ranges and ranges[-1][2] == k and ranges[-1][1] == code - 1:
        ranges[-1][1] = code
    else:
        ranges.append([code, code, k])

path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../common/text/bert_table.inc")
with open(path, "w") as out:
    out.write(f"// Made by tests/golden/tokenizers/make_bert_table.py with tokenizers {__version__}; do not edit.\n")
    line = ""
    for first, last, k in ranges:
        item = f"{{0x{first:x}, 0x{last:x}, {k}}},"
        if len(line) + len(item) > 128:
            out.write(line.rstrip() + "\n")
            line = ""
        line += item + " "
    out.write(line.rstrip() + "\n")
print(len(ranges), "ranges")
