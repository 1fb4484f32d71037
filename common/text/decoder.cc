#include "common/text/decoder.h"

#include "common/text/byte_tokens.h"
#include "common/text/pre_tokenizer.h"

namespace membank {

Decoder MakeDecoder(const Vocabulary& vocabulary, const DecoderRules& rules) {
  std::vector<std::string> texts;
  for (int32_t id = 0; id < vocabulary.size(); ++id) texts.push_back(vocabulary.spelling(id));
  for (const AddedToken& token : vocabulary.added()) {   // Hugging Face decodes what it finds in text
    if (!token.pattern.empty()) texts[token.id] = token.pattern;
  }
  Decoder decoder;
  decoder.strip_spaces = rules.strip_spaces;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    std::string& text = texts[id];
    if (rules.byte_alphabet && !vocabulary.IsAdded(id)) text = FromByteAlphabet(text);
    if (const int byte = rules.byte_tokens ? ByteOfToken(text) : -1; byte >= 0) text = std::string(1, static_cast<char>(byte));
    if (rules.drop_first_metaspaces) ReplaceAll(decoder.first.emplace_back(text), kMetaspace, "");
    if (rules.metaspace_to_space) ReplaceAll(text, kMetaspace, " ");
    decoder.next.push_back(std::move(text));
  }
  return decoder;
}

}  // namespace membank
