// dictd dictionaries (RFC 2229 servers; dictfmt(1)): NAME.index with lines "headword \t offset \t size", numbers in base 64, and NAME.dict or
// NAME.dict.dz (gzip). Headers (00-database-... and 00database...) are left out. Pure function; errors name file and line.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/corpus/document.h"
#include "common/corpus/encoding.h"

namespace membank {

// `base` is the path without its extension ("/usr/share/dictd/wn"). One document per headword in the order of the dictionary's text; the
// entries of one headword are merged; headwords that share exactly the same entries (spellings, inflections) are one document.
absl::StatusOr<std::vector<Document>> ReadDictd(const std::string& base, Encoding encoding);

// The whole of a gzip file (several members allowed). DATA_LOSS when it is truncated or damaged.
absl::StatusOr<std::string> ReadGzip(const std::string& path);

}  // namespace membank
