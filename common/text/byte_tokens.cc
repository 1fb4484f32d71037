#include "common/text/byte_tokens.h"

#include "common/text/utf8.h"
#include "fmt/format.h"

namespace membank {
namespace {

bool IsPrintable(uint32_t byte) { return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174; }

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

const std::array<std::string, 256>& ByteAlphabet() {
  static const auto& alphabet = *[] {
    auto* letters = new std::array<std::string, 256>;
    uint32_t next = 256;
    for (uint32_t byte = 0; byte < 256; ++byte) AppendUtf8(IsPrintable(byte) ? byte : next++, (*letters)[byte]);
    return letters;
  }();
  return alphabet;
}

std::string FromByteAlphabet(const std::string& spelling) {
  static const TokenMap& byte_of = *[] {
    auto* map = new TokenMap;
    for (int32_t byte = 0; byte < 256; ++byte) (*map)[ByteAlphabet()[byte]] = byte;
    return map;
  }();
  std::string bytes;
  for (std::string_view rest = spelling; !rest.empty();) {
    const size_t length = NextUtf8(rest).length;
    const int32_t byte = Lookup(byte_of, rest.substr(0, length));
    if (byte < 0) return spelling;
    bytes += static_cast<char>(byte);
    rest.remove_prefix(length);
  }
  return bytes;
}

int ByteOfToken(std::string_view spelling) {
  if (spelling.size() != 6 || spelling.substr(0, 3) != "<0x" || spelling[5] != '>') return -1;
  const int high = HexDigit(spelling[3]), low = HexDigit(spelling[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

std::array<int32_t, 256> FindByteTokens(const Vocabulary& vocabulary) {
  std::array<int32_t, 256> ids;
  for (size_t byte = 0; byte < ids.size(); ++byte) ids[byte] = vocabulary.Find(fmt::format("<0x{:02X}>", byte));
  return ids;
}

bool AppendByteTokens(std::string_view bytes, const std::array<int32_t, 256>& tokens, std::vector<int32_t>& ids) {
  for (char byte : bytes) {
    if (tokens[static_cast<uint8_t>(byte)] < 0) return false;
  }
  for (char byte : bytes) ids.push_back(tokens[static_cast<uint8_t>(byte)]);
  return true;
}

}  // namespace membank
