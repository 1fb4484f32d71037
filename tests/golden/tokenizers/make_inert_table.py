#!/usr/bin/env python3
"""Writes common/text/inert_table.inc: the characters that Unicode normalisation changes or reorders in utf8proc but not in Hugging Face's
tokenizers, whose tables are of an older Unicode version. Asked of both libraries. Needs: pip install tokenizers; Debian's libutf8proc2."""
import ctypes
import os

from tokenizers import __version__, normalizers

utf8proc = ctypes.CDLL("libutf8proc.so.2")
utf8proc.utf8proc_NFKD.restype = utf8proc.utf8proc_NFD.restype = ctypes.c_char_p
utf8proc.utf8proc_unicode_version.restype = ctypes.c_char_p


class Property(ctypes.Structure):
    _fields_ = [("category", ctypes.c_int16), ("combining_class", ctypes.c_int16)]


utf8proc.utf8proc_get_property.restype = ctypes.POINTER(Property)
nfd, nfkd = normalizers.NFD(), normalizers.NFKD()


def is_inert(c):
    if utf8proc.utf8proc_NFKD(c.encode()) != c.encode():
        return nfkd.normalize_str(c) == c
    combining = utf8proc.utf8proc_get_property(ord(c)).contents.combining_class
    if combining == 0:
        return False
    pair = c + "\u0334" if combining > 1 else "\u0301" + c  # U+0334 has class 1, U+0301 230: swapped when c's class is known
    return nfd.normalize_str(pair) == pair


inert = [code for code in range(0x80, 0x110000) if not 0xD800 <= code < 0xE000 and is_inert(chr(code))]
# What would be composed to one of them must not be.
inert += [ord(utf8proc.utf8proc_NFD(chr(code).encode()).decode()[-1]) for code in inert if utf8proc.utf8proc_NFD(chr(code).encode()).decode() != chr(code)]
ranges = []
for code in sorted(set(inert)):
    if ranges and ranges[-1][1] == code - 1:
        ranges[-1][1] = code
    else:
        ranges.append([code, code])

path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../common/text/inert_table.inc")
with open(path, "w") as out:
    out.write(f"// Made by tests/golden/tokenizers/make_inert_table.py with tokenizers {__version__} and utf8proc's Unicode "
              f"{utf8proc.utf8proc_unicode_version().decode()}; do not edit.\n")
    line = ""
    for first, last in ranges:
        item = f"{{0x{first:x}, 0x{last:x}}},"
        if len(line) + len(item) > 128:
            out.write(line.rstrip() + "\n")
            line = ""
        line += item + " "
    out.write(line.rstrip() + "\n")
print(len(ranges), "ranges")
