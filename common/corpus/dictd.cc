#include "common/corpus/dictd.h"

#include <zlib.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <unordered_map>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr size_t kMaxTextBytes = size_t{4} << 30;  // a decompression bomb stops here

struct Range {
  uint64_t offset = 0, size = 0;
  auto operator<=>(const Range&) const = default;
};

struct Page {
  std::string headword;
  std::vector<Range> ranges;  // ascending
};

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0;;) {
    const size_t end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end == std::string_view::npos ? end : end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

// dictd's base 64: a number, most significant digit first.
absl::StatusOr<uint64_t> DecodeNumber(std::string_view digits) {
  static constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (digits.empty() || digits.size() > 10) return InvalidArgument("'{}' is not a base-64 number", digits);
  uint64_t value = 0;
  for (const char c : digits) {
    const size_t digit = kDigits.find(c);
    if (digit == std::string_view::npos) return InvalidArgument("'{}' is not a base-64 number", digits);
    value = value * 64 + digit;
  }
  return value;
}

bool IsHeader(std::string_view headword) { return headword.starts_with("00-") || headword.starts_with("00database"); }

// Headwords with their entries, in the order of the index.
absl::StatusOr<std::vector<Page>> ReadIndex(const std::string& path, std::string_view index, uint64_t text_bytes) {
  std::vector<Page> pages;
  std::unordered_map<std::string, size_t> page_of;
  size_t number = 0;
  for (const std::string_view line : Split(index, '\n')) {
    ++number;
    if (line.empty()) continue;
    const std::vector<std::string_view> fields = Split(line, '\t');
    if (fields.size() < 3 || fields[0].empty()) return InvalidArgument("{}:{}: expected headword, offset and size, separated by tabs", path, number);
    const absl::StatusOr<uint64_t> offset = DecodeNumber(fields[1]), size = DecodeNumber(fields[2]);
    if (!offset.ok()) return InvalidArgument("{}:{}: offset {}", path, number, std::string(offset.status().message()));
    if (!size.ok()) return InvalidArgument("{}:{}: size {}", path, number, std::string(size.status().message()));
    if (*offset > text_bytes || *size > text_bytes - *offset) {
      return DataLoss("{}:{}: '{}' lies at {}..{}, but the dictionary's text has {} bytes; index and text do not belong together or the text is truncated",
                      path, number, fields[0], *offset, *offset + *size, text_bytes);
    }
    if (IsHeader(fields[0])) continue;
    const std::string headword(fields.size() > 3 && !fields[3].empty() ? fields[3] : fields[0]);
    const auto [it, inserted] = page_of.emplace(headword, pages.size());
    if (inserted) pages.push_back({headword, {}});
    pages[it->second].ranges.push_back({*offset, *size});
  }
  for (Page& page : pages) {
    std::sort(page.ranges.begin(), page.ranges.end());
    page.ranges.erase(std::unique(page.ranges.begin(), page.ranges.end()), page.ranges.end());
  }
  return pages;
}

bool BeginsWith(std::string_view text, std::string_view headword) {
  return text.size() >= headword.size() && std::equal(headword.begin(), headword.end(), text.begin(), [](unsigned char a, unsigned char b) {
           return std::tolower(a) == std::tolower(b);
         });
}

// Aliases become one page, called by the headword that its text begins with, else by the first.
std::vector<Page> MergeAliases(std::vector<Page> pages, std::string_view text) {
  std::map<std::vector<Range>, std::string> headword_of;
  for (Page& page : pages) {
    const std::string_view entry = text.substr(page.ranges[0].offset, page.ranges[0].size);
    const auto [it, inserted] = headword_of.emplace(std::move(page.ranges), page.headword);
    if (!inserted && !BeginsWith(entry, it->second) && BeginsWith(entry, page.headword)) it->second = page.headword;
  }
  std::vector<Page> merged;
  for (auto& [ranges, headword] : headword_of) merged.push_back({headword, ranges});  // ascending: the order of the text
  return merged;
}

absl::StatusOr<std::string> ReadText(const std::string& base, std::string& path) {
  for (const char* extension : {".dict.dz", ".dict"}) {
    path = base + extension;
    if (!std::filesystem::exists(path)) continue;
    if (path.ends_with(".dz")) return ReadGzip(path);
    return ReadFile(path);
  }
  return NotFound("{}.index has no text beside it: neither {}.dict.dz nor {}.dict exists", base, base, base);
}

}  // namespace

absl::StatusOr<std::string> ReadGzip(const std::string& path) {
  constexpr size_t kStep = size_t{1} << 20;
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> file, MappedFile::Open(path));
  const absl::Span<const uint8_t> bytes = file->bytes();
  if (bytes.size() > UINT32_MAX) return ResourceExhausted("{}: {} bytes; compressed dictionaries of up to 4 GiB are supported", path, bytes.size());
  z_stream stream = {};
  if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK) return Internal("{}: zlib could not start", path);
  stream.next_in = const_cast<Bytef*>(bytes.data());
  stream.avail_in = static_cast<uInt>(bytes.size());
  std::string text;
  int code = Z_OK;
  bool ended = false;  // at the end of a member
  do {
    if (ended) inflateReset(&stream);
    const size_t before = text.size();
    text.resize(before + kStep);
    stream.next_out = reinterpret_cast<Bytef*>(text.data() + before);
    stream.avail_out = kStep;
    code = inflate(&stream, Z_NO_FLUSH);  // Z_BUF_ERROR: no progress is possible, the input has ended
    text.resize(text.size() - stream.avail_out);
    ended = code == Z_STREAM_END;
  } while ((code == Z_OK || (ended && stream.avail_in > 0)) && text.size() <= kMaxTextBytes);
  const std::string message = stream.msg == nullptr ? "no gzip header" : stream.msg;
  inflateEnd(&stream);
  if (text.size() > kMaxTextBytes) return ResourceExhausted("{}: its text is larger than {} GiB", path, kMaxTextBytes >> 30);
  if (code == Z_BUF_ERROR) return DataLoss("{}: the gzip stream ends early, after {} bytes of text; the file is truncated", path, text.size());
  if (!ended) return DataLoss("{}: not a whole gzip stream ({}); the file is damaged", path, message);
  return text;
}

absl::StatusOr<std::vector<Document>> ReadDictd(const std::string& base, Encoding encoding) {
  const std::string index_path = base + ".index";
  std::string text_path;
  ASSIGN_OR_RETURN(const std::string index, ReadFile(index_path));
  ASSIGN_OR_RETURN(const std::string text, ReadText(base, text_path));
  ASSIGN_OR_RETURN(std::vector<Page> pages, ReadIndex(index_path, index, text.size()));
  // Offsets count bytes of the file, so the file is checked whole and its entries are converted one by one.
  RETURN_IF_ERROR(ToUtf8(text, encoding, text_path).status());
  const std::string name = std::filesystem::path(base).filename();
  std::vector<Document> documents;
  for (const Page& page : MergeAliases(std::move(pages), text)) {
    Document document;
    ASSIGN_OR_RETURN(document.title, ToUtf8(page.headword, encoding, index_path));
    document.id = name + ":" + document.title;
    for (const Range& range : page.ranges) {
      absl::string_view entry = absl::StripAsciiWhitespace(absl::string_view(text.data() + range.offset, range.size));
      if (entry.empty()) continue;
      ASSIGN_OR_RETURN(const std::string converted, ToUtf8(std::string(entry.data(), entry.size()), encoding, fmt::format("{} (entry '{}')", text_path, page.headword)));
      if (!document.text.empty()) document.text += "\n\n";
      document.text += converted;
    }
    if (document.text.empty()) return InvalidArgument("{}: the entry of '{}' is empty", text_path, page.headword);
    documents.push_back(std::move(document));
  }
  return documents;
}

}  // namespace membank
