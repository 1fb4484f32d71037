#!/usr/bin/env python3
"""Trains small tokenizers of the kinds that SentencePiece introduced and writes them with the ids and texts that the reference gives:

  spm_bpe      tokenizer.model (BPE, bytes to fall back to, user-defined pieces) and the same as GGUF; judged by SentencePiece
  spm_unigram  tokenizer.model (unigram, a small charsmap, white space squeezed); judged by SentencePiece
  llama2       tokenizer.json of Llama 2's kind (Prepend and Replace, merges made of spm_bpe's scores); judged by Hugging Face
  metaspace    the same with a Metaspace pre-tokenizer and added tokens of every sort; judged by Hugging Face
  unigram      tokenizer.json with Precompiled and Metaspace, spm_unigram's pieces; judged by Hugging Face
  gemma3       the real one in the GGUF file that deploy/setup --models installs; judged by SentencePiece
  neox         tokenizer.json of GPT-NeoX's kind (NFC, added runs of spaces); judged by Hugging Face

Seeded: the same libraries write the same files. Needs: deploy/setup --dev."""
import io
import json
import os
import random
import tempfile

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import reference

here = os.path.dirname(os.path.abspath(__file__))
TEXTS = [
    "", " ", "  ", "\n", "\t\t x", "a", " a", "Hello, world!", "The atomic number of gold is 79.", "It's we'll they're don't",
    "x  y   z    \n\n\n  end  ", "tab\tnew\r\nline", "1234567890 3.14159 \u0661\u0662 \u00b2 \u2167 \u00bd",
    "def f(x: int) -> list[str]:\n    return [str(i) for i in range(x)]  # comment\n", "int main() { return a->b && c || !d; }\n",
    "caf\u00e9 cafe\u0301 na\u00efve \u00c5 A\u030a \u1e69 s\u0323\u0307 \ufb01ne \uff21\uff22\uff23 \uff21\u0301 ab\u0301c", "\u4e2d\u6587\u5206\u8bcd\u3002\u65e5\u672c\u8a9e\u3001\ud55c\uad6d\uc5b4",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0639\u0631\u0628\u064a \u05e2\u05d1 \u0939\u093f\u0928\u094d\u0926\u0940", "\U0001f600\U0001f468\u200d\U0001f469 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "<s>user\nhi</s><unk>", "<s", "a</s>b </s>", "<0x0A> <0x41>", "x<tool>y <tool> z <tool>", "x <mask> y<mask>z  <mask>  ", "awordb word, word.word_", "\u2581\u2581a \u2581",
    "a\u00a0b\u2003c\u3000d\u200be\u2028f", "\x00\x01\x7f\ufffd\ue000\U000e0001", "a" * 60, "ab" * 40, "\u4e2d" * 30, " " * 40, "\n" * 9, "x\n\n\n y \n z\n", "  leading", "trailing  ",
]


def mixtures(count):
    rng = random.Random(7)
    words = " ".join(TEXTS).split(" ")
    for _ in range(count):
        yield rng.choice([" ", "  ", "\n", ""]).join(rng.choice(words)[:30] for _ in range(rng.randrange(1, 20)))


def write(name, tokenizer):
    with open(os.path.join(here, name + ".jsonl"), "w", encoding="utf-8") as out:
        for text in TEXTS + list(mixtures(50)):
            line = {"text": text, "plain": reference.encode(tokenizer, text, False)}
            if isinstance(tokenizer, reference.SentencePiece):
                decoded = tokenizer.decode(line["plain"])
                if "\u2047" not in decoded:  # SentencePiece's text for unknown pieces
                    line["decoded"] = decoded
            else:
                line["special"] = reference.encode(tokenizer, text, True)
                line["decoded"] = tokenizer.decode(line["special"], skip_special_tokens=True)
                line["decoded_all"] = tokenizer.decode(line["special"], skip_special_tokens=False)
            out.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


def train(name, **options):
    """A folder with tokenizer.model; its ModelProto."""
    proto = io.BytesIO()
    lines = [line for text in TEXTS * 3 + list(mixtures(200)) for line in text.replace("\x00", "").split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=proto, num_threads=1, hard_vocab_limit=False, max_sentence_length=100000,
        minloglevel=2, **options)
    os.makedirs(os.path.join(here, name), exist_ok=True)
    with open(os.path.join(here, name, "tokenizer.model"), "wb") as out:
        out.write(proto.getvalue())
    write(name, reference.SentencePiece(proto.getvalue()))
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(proto.getvalue())
    return model


def write_gguf(name, model):
    writer = gguf.GGUFWriter(os.path.join(here, name, "tokenizer.gguf"), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([p.piece.replace("\u2581", " ") if p.type == 4 else p.piece for p in model.pieces])
    writer.add_token_scores([p.score for p in model.pieces])
    writer.add_token_types([p.type for p in model.pieces])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def save(name, tokenizer):
    os.makedirs(os.path.join(here, name), exist_ok=True)
    path = os.path.join(here, name, "tokenizer.json")
    tokenizer.save(path, pretty=False)
    write(name, reference.load(path))


def merges_of(pieces):
    """As transformers makes them for a SentencePiece BPE: all ways to cut a piece in two others, the pieces by falling score."""
    ids = {p.piece: i for i, p in enumerate(pieces)}
    merges = []
    for p in sorted(pieces, key=lambda p: -p.score):
        cuts = [(p.piece[:i], p.piece[i:]) for i in range(1, len(p.piece))]
        cuts = [c for c in cuts if c[0] in ids and c[1] in ids]
        merges += sorted(cuts, key=lambda c: (ids[c[0]], ids[c[1]]))
    return merges


def llama2(bpe, metaspace):
    vocabulary = {p.piece: i for i, p in enumerate(bpe.pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges_of([p for p in bpe.pieces if p.type == 1]), unk_token="<unk>", fuse_unk=True, byte_fallback=not metaspace))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=not metaspace)])
    if metaspace:
        tokenizer.add_tokens([AddedToken("word", special=False, normalized=True, single_word=True)])
        tokenizer.add_special_tokens([AddedToken("<mask>", special=True, normalized=False, lstrip=True, rstrip=True)])
    save("metaspace" if metaspace else "llama2", tokenizer)


def unigram(model):
    tokenizer = Tokenizer(models.Unigram([(p.piece, p.score) for p in model.pieces], unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    save("unigram", tokenizer)


def neox():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS * 3 + list(mixtures(200)), trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken(" " * n, special=False, normalized=True) for n in range(24, 1, -1)] + [AddedToken("<tool>", special=False, normalized=True)])
    save("neox", tokenizer)


bpe = train("spm_bpe", model_type="bpe", vocab_size=620, byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity",
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, user_defined_symbols=["<tool>", "\u2581\u2581", "\u2581\u2581\u2581\u2581"])
write_gguf("spm_bpe", bpe)
# Rules as nmt_nfkc has: full-width letters, a ligature, a composed letter, other spaces, one character that goes.
rules = [(0xFF21 + i, (0x41 + i,)) for i in range(26)] + [(0xFB01, (0x66, 0x69)), (0xA0, (0x20,)), (0x2003, (0x20,)), (0x3000, (0x20,)), (0x9, (0x20,)), (0x200B, ())]
with tempfile.NamedTemporaryFile("w", suffix=".tsv") as out:
    out.write("".join(f"{source:X}\t{' '.join(f'{c:X}' for c in target)}\n" for source, target in rules) + "65 301\tE9\n41 30A\tC5\n")
    out.flush()
    uni = train("spm_unigram", model_type="unigram", vocab_size=300, character_coverage=0.98, normalization_rule_tsv=out.name)
llama2(bpe, metaspace=False)
llama2(bpe, metaspace=True)
unigram(uni)
neox()
if os.path.exists(reference.GEMMA3):
    write("gemma3", reference.load(reference.GEMMA3))
