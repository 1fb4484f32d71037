// Text as the bytes it is. Borrowed: the text must outlive the span.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/types/span.h"

namespace membank {

inline absl::Span<const uint8_t> AsBytes(std::string_view text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

}  // namespace membank
