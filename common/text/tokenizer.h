// Tokenizers behind one interface: BPE (byte-level and SentencePiece's), unigram and BERT's WordPiece, from a Hugging Face tokenizer.json,
// the vocabulary inside a GGUF file, or a SentencePiece .model file. Ids are identical to Hugging Face tokenizers', and to SentencePiece's
// for the last. Immutable after loading; any thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace membank {

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Text must be UTF-8: INVALID_ARGUMENT names the byte offset of the first bad sequence. No special tokens are added; special tokens
  // written in the text ("<|im_start|>") are recognised when `parse_special`.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool parse_special = false) const = 0;
  // The text of the ids; bytes that are not UTF-8 yet come out as they are (see StreamDecoder). A space that only the encoder put before the
  // text is left out again. INVALID_ARGUMENT names an id out of range.
  virtual absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids, bool skip_special = true) const = 0;

  // What the id adds to a text behind other tokens: a space that begins it is kept.
  virtual absl::StatusOr<std::string> DecodeNext(int32_t id, bool skip_special = true) const {
    return Decode(absl::MakeConstSpan(&id, 1), skip_special);
  }

  virtual int32_t vocab_size() const = 0;
  virtual int32_t eos_id() const = 0;   // end of text/document (EOT); -1 when there is none
  virtual int32_t bos_id() const = 0;   // -1 when there is none
  virtual bool IsSpecial(int32_t id) const = 0;
  virtual absl::StatusOr<int32_t> TokenId(std::string_view token) const = 0;  // "<|im_end|>" -> id
  // XXH3-128 of everything that decides which ids a text gets (vocabulary, merges or scores, added tokens, rules), 32 hex digits. Equal for
  // the tokenizer.json and the GGUF form of one byte-level BPE; SentencePiece's scores and the merges made of them differ. A packed corpus
  // stores it; the trainer compares it.
  virtual std::string Fingerprint() const = 0;
};

// The end of text is the special token "<|endoftext|>", "<|end_of_text|>" or "</s>" when there is one, else what the file (GGUF) or the
// tokenizer_config.json beside it declares: instruction-tuned models declare their end of turn ("<|im_end|>").
// A tokenizer.json, a GGUF file, a SentencePiece .model file, or a directory that holds a tokenizer.json or a tokenizer.model. UNIMPLEMENTED
// names a kind that is not supported and lists those that are.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& path);

// Streams the text that tokens add to others (a prompt), one by one, without ever emitting a broken UTF-8 sequence. One thread.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  absl::StatusOr<std::string> Push(int32_t id);  // the text that became complete
  std::string Finish();                          // what is left, broken sequences as U+FFFD

 private:
  const Tokenizer& tokenizer_;
  std::string pending_;
};

// Byte offset of the first byte that is not part of a valid UTF-8 sequence, or npos.
size_t FindInvalidUtf8(std::string_view text);

}  // namespace membank
