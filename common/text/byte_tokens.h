// How tokens stand for bytes: GPT-2's byte alphabet, and SentencePiece's byte tokens "<0x0A>". Pure functions.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "common/text/vocabulary.h"

namespace membank {

// GPT-2's letters by byte: printable bytes stand for themselves, the others for U+0100 and up, in order.
const std::array<std::string, 256>& ByteAlphabet();

// The bytes that a spelling in the byte alphabet stands for; one with characters outside the alphabet stands for itself.
std::string FromByteAlphabet(const std::string& spelling);

// The byte of "<0x0A>"; -1 for any other spelling.
int ByteOfToken(std::string_view spelling);

// The ids of "<0x00>" to "<0xFF>"; -1 where the vocabulary lacks one.
std::array<int32_t, 256> FindByteTokens(const Vocabulary& vocabulary);

// Appends the tokens of the bytes; false, appending nothing, when one is missing.
bool AppendByteTokens(std::string_view bytes, const std::array<int32_t, 256>& tokens, std::vector<int32_t>& ids);

}  // namespace membank
