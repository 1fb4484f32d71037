#include "model_worker/serve/text_stream.h"

#include <algorithm>
#include <string_view>

#include "common/base/status_macros.h"

namespace membank {
namespace {

// Length of the longest end of `text` that begins `stop` without being all of it.
size_t OpenSuffix(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.substr(text.size() - length) == stop.substr(0, length)) return length;
  }
  return 0;
}

}  // namespace

absl::StatusOr<std::string> TextStream::Push(int32_t id) {
  ASSIGN_OR_RETURN(std::string text, decoder_.Push(id));
  held_ += text;
  return Release();
}

std::string TextStream::Finish() {
  if (stopped_) return "";
  held_ += decoder_.Finish();
  std::string text = Release();
  if (!stopped_) text += held_;
  held_.clear();
  return text;
}

std::string TextStream::Release() {
  size_t cut = std::string::npos;
  for (const std::string& stop : stop_) cut = std::min(cut, held_.find(stop));
  if (cut != std::string::npos) {
    stopped_ = true;
  } else {
    size_t open = 0;
    for (const std::string& stop : stop_) open = std::max(open, OpenSuffix(held_, stop));
    cut = held_.size() - open;
  }
  std::string text = held_.substr(0, cut);
  held_.erase(0, cut);
  return text;
}

}  // namespace membank
