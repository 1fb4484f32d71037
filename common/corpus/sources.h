// Where documents come from: text files (a document each), JSON Lines, dictd dictionaries, folders of these.
//   NAME.txt NAME.text NAME.md      one document
//   NAME.jsonl NAME.ndjson          one per line: {"text": ..., optional "id" (string or number), "title",
//                                  "retrieve_on" (the text that finds the path, as in requests)}; other keys are ignored
//   NAME.index NAME.dict NAME.dict.dz, or NAME where NAME.index exists: a dictd dictionary
//   a folder                        every such file below it, in the order of their names; other files are counted, not read
// Files are read in the given order. Errors name file and line or byte offset. Any thread.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/corpus/document.h"
#include "common/corpus/encoding.h"

namespace membank {

struct SourceSpec {
  std::string path;
  Encoding encoding = Encoding::kUtf8;
};

struct LoadedDocuments {
  std::vector<Document> documents;
  std::map<std::string, int> skipped;  // extension -> files of folders that were not read
};

// INVALID_ARGUMENT: unknown extension, other encoding, malformed line, blank document, no documents at all. NOT_FOUND: no such path.
absl::StatusOr<LoadedDocuments> LoadDocuments(const std::vector<SourceSpec>& sources);

}  // namespace membank
