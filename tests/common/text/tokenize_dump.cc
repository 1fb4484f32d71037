// tokenize_dump TOKENIZER TEXT_FILE OUT_FILE PARSE_SPECIAL: the ids of each document (separated by byte 0x1e) as int32: count, then ids.
// Prints the time spent in Encode alone. tests/golden/tokenizers/compare_large.py runs it.
#include <chrono>
#include <fstream>

#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/text/tokenizer.h"

namespace membank {
namespace {

absl::Status Dump(const std::string& tokenizer_path, const std::string& text_path, const std::string& out_path, bool parse_special) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(tokenizer_path));
  ASSIGN_OR_RETURN(const std::string text, ReadFile(text_path));
  std::ofstream out(out_path, std::ios::binary);
  std::chrono::duration<double> spent{};
  size_t total = 0;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find('\x1e', begin), text.size());
    const auto start = std::chrono::steady_clock::now();
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer->Encode(std::string_view(text).substr(begin, end - begin), parse_special));
    spent += std::chrono::steady_clock::now() - start;
    const int32_t count = static_cast<int32_t>(ids.size());
    out.write(reinterpret_cast<const char*>(&count), sizeof(count));
    out.write(reinterpret_cast<const char*>(ids.data()), static_cast<std::streamsize>(ids.size() * sizeof(int32_t)));
    total += ids.size();
    begin = end + 1;
  }
  fmt::print("{} ids, {:.2f} MB/s\n", total, static_cast<double>(text.size()) / 1e6 / spent.count());
  return out.flush() ? absl::OkStatus() : Internal("cannot write {}", out_path);
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  if (argc != 5) {
    fmt::print(stderr, "usage: tokenize_dump TOKENIZER TEXT_FILE OUT_FILE PARSE_SPECIAL(0|1)\n");
    return 2;
  }
  const absl::Status status = membank::Dump(argv[1], argv[2], argv[3], std::string_view(argv[4]) == "1");
  if (!status.ok()) fmt::print(stderr, "{}\n", status.ToString());
  return status.ok() ? 0 : 1;
}
