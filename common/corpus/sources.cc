#include "common/corpus/sources.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <set>
#include <system_error>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/corpus/dictd.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

enum class Kind { kText, kJsonLines, kDictionary, kUnknown };

constexpr char kKnown[] = ".txt, .text, .md (one document), .jsonl, .ndjson (one per line), .index with .dict or .dict.dz (dictd dictionary)";

// ".dict.dz" counts as one extension.
std::string Extension(const fs::path& path) {
  const std::string name = path.filename();
  return name.ends_with(".dict.dz") ? ".dict.dz" : path.extension().string();
}

Kind KindOf(const fs::path& path) {
  const std::string extension = Extension(path);
  if (extension == ".txt" || extension == ".text" || extension == ".md") return Kind::kText;
  if (extension == ".jsonl" || extension == ".ndjson") return Kind::kJsonLines;
  if (extension == ".index" || extension == ".dict" || extension == ".dict.dz") return Kind::kDictionary;
  return Kind::kUnknown;
}

bool IsBlank(std::string_view text) { return text.find_first_not_of(" \t\r\n\f\v") == std::string_view::npos; }

absl::Status ReadTextFile(const std::string& path, Encoding encoding, std::vector<Document>& documents) {
  ASSIGN_OR_RETURN(std::string bytes, ReadFile(path));
  ASSIGN_OR_RETURN(std::string text, ToUtf8(std::move(bytes), encoding, path));
  if (IsBlank(text)) return InvalidArgument("{}: the document is empty; remove the file or leave it out", path);
  documents.push_back({path, fs::path(path).stem(), std::move(text)});
  return absl::OkStatus();
}

absl::StatusOr<std::string> OptionalString(const Json& json, const char* key, const std::string& where) {
  const auto value = json.find(key);
  if (value == json.end() || value->is_null()) return std::string();
  if (!value->is_string()) return InvalidArgument("{}: \"{}\" is a {}, not a string", where, key, value->type_name());
  return value->get<std::string>();
}

absl::StatusOr<Document> ParseLine(std::string_view line, const std::string& where) {
  Document document;
  const absl::StatusOr<Json> parsed = ParseJson(line);
  if (!parsed.ok()) return InvalidArgument("{}: not JSON: {}", where, std::string(parsed.status().message()));
  const Json& json = *parsed;
  if (!json.is_object()) return InvalidArgument("{}: expected an object like {{\"text\": \"...\"}}, found {}", where, json.type_name());
  const auto text = json.find("text");
  if (text == json.end()) return InvalidArgument("{}: the key \"text\" is missing", where);
  if (!text->is_string()) return InvalidArgument("{}: \"text\" is a {}, not a string", where, text->type_name());
  document.text = text->get<std::string>();
  ASSIGN_OR_RETURN(document.title, OptionalString(json, "title", where));
  ASSIGN_OR_RETURN(document.retrieve_on, OptionalString(json, "retrieve_on", where));
  if (const auto id = json.find("id"); id != json.end() && !id->is_null()) {
    if (!id->is_string() && !id->is_number_integer()) return InvalidArgument("{}: \"id\" is a {}, not a string or an integer", where, id->type_name());
    document.id = id->is_string() ? id->get<std::string>() : id->dump();
  }
  if (IsBlank(document.text)) return InvalidArgument("{}: \"text\" is empty; remove the line", where);
  if (document.id.empty()) document.id = where;
  return document;
}

absl::Status ReadJsonLines(const std::string& path, Encoding encoding, std::vector<Document>& documents) {
  ASSIGN_OR_RETURN(std::string bytes, ReadFile(path));
  ASSIGN_OR_RETURN(const std::string text, ToUtf8(std::move(bytes), encoding, path));
  size_t number = 0;
  const size_t before = documents.size();
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (IsBlank(line)) continue;
    ASSIGN_OR_RETURN(Document document, ParseLine(line, fmt::format("{}:{}", path, number)));
    documents.push_back(std::move(document));
  }
  if (documents.size() == before) return InvalidArgument("{}: holds no documents", path);
  return absl::OkStatus();
}

std::string DictionaryBase(const std::string& path) { return path.substr(0, path.size() - Extension(path).size()); }

// Reads files one after the other; a dictionary's index and text are one file.
class DocumentLoader {
 public:
  absl::Status AddSource(const SourceSpec& source) {
    std::error_code error;
    if (fs::is_directory(source.path, error)) return AddFolder(source);
    if (!fs::exists(source.path, error)) {
      if (fs::exists(source.path + ".index", error)) return AddFile(source.path + ".index", source.encoding);
      return NotFound("{}: no such file or folder", source.path);
    }
    if (KindOf(source.path) == Kind::kUnknown) {
      return InvalidArgument("{}: unknown extension '{}'; known are {}", source.path, Extension(source.path), kKnown);
    }
    return AddFile(source.path, source.encoding);
  }

  LoadedDocuments Take() { return std::move(loaded_); }

 private:
  absl::Status AddFolder(const SourceSpec& source) {
    std::vector<std::string> files;
    std::error_code error;
    for (auto it = fs::recursive_directory_iterator(source.path, error); !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
      if (it->is_regular_file()) files.push_back(it->path());
    }
    if (error) return Unavailable("{}: {}", source.path, error.message());
    std::sort(files.begin(), files.end());
    const size_t before = loaded_.documents.size();
    for (const std::string& file : files) {
      if (KindOf(file) == Kind::kUnknown) {
        ++loaded_.skipped[Extension(file)];
      } else {
        RETURN_IF_ERROR(AddFile(file, source.encoding));
      }
    }
    if (loaded_.documents.size() == before) return InvalidArgument("{}: the folder holds no documents; known files are {}", source.path, kKnown);
    return absl::OkStatus();
  }

  absl::Status AddFile(const std::string& path, Encoding encoding) {
    switch (KindOf(path)) {
      case Kind::kText: return ReadTextFile(path, encoding, loaded_.documents);
      case Kind::kJsonLines: return ReadJsonLines(path, encoding, loaded_.documents);
      default: return AddDictionary(DictionaryBase(path), encoding);
    }
  }

  absl::Status AddDictionary(const std::string& base, Encoding encoding) {
    if (!dictionaries_.insert(base).second) return absl::OkStatus();
    ASSIGN_OR_RETURN(std::vector<Document> documents, ReadDictd(base, encoding));
    if (documents.empty()) return InvalidArgument("{}.index: holds no documents", base);
    std::move(documents.begin(), documents.end(), std::back_inserter(loaded_.documents));
    return absl::OkStatus();
  }

  LoadedDocuments loaded_;
  std::set<std::string> dictionaries_;
};

}  // namespace

absl::StatusOr<LoadedDocuments> LoadDocuments(const std::vector<SourceSpec>& sources) {
  if (sources.empty()) return InvalidArgument("there is no source of documents");
  DocumentLoader loader;
  for (const SourceSpec& source : sources) RETURN_IF_ERROR(loader.AddSource(source));
  return loader.Take();
}

}  // namespace membank
