// A packed corpus: what `membank corpus` writes and the trainer reads. A directory of
//   index.json       magic, version, tokenizer hash, tree fingerprint, fan_out, depth, sequence_length, counts, shards with XXH3 checksums
//   shard-00000.bin  records, globally shuffled
// A record is one training sequence: leaf cluster (uint32), document count (uint32), token count (uint32), document ends (offsets), token
// ids. All documents of a sequence belong to one leaf; attention stays inside a document; every document ends with EOT. A document longer
// than sequence_length is stored as several windows, each with a leaf and an end of its own, of which only the last ends with EOT.
// The byte layout is above the codec in packed.cc. Reader: immutable, any thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/file.h"

namespace membank {

struct PackedSequence {
  uint32_t leaf = 0;                      // cluster of the deepest level
  std::vector<int32_t> tokens;            // concatenated documents, each ending with EOT
  std::vector<uint32_t> document_ends;    // ascending; the last equals tokens.size()
};

struct PackedInfo {
  std::string tokenizer_hash;      // FAILED_PRECONDITION in the trainer when it is not the anchor's
  std::string tree_fingerprint;
  uint32_t fan_out = 0, depth = 0;
  uint32_t sequence_length = 0;    // maximum tokens per sequence
  uint32_t vocab_size = 0;
  uint64_t sequences = 0, documents = 0, tokens = 0;
};

class PackedCorpus {
 public:
  // Checks magic, version, sizes and checksums; DATA_LOSS names shard and offset.
  static absl::StatusOr<std::unique_ptr<PackedCorpus>> Open(const std::string& directory);
  const PackedInfo& info() const { return info_; }
  uint64_t size() const { return info_.sequences; }
  absl::StatusOr<PackedSequence> Read(uint64_t index) const;
  std::string Fingerprint() const;  // of the index: recorded in checkpoints, compared on resume

 private:
  PackedCorpus() = default;
  PackedInfo info_;
  std::vector<std::shared_ptr<MappedFile>> shards_;
  std::vector<std::pair<uint32_t, uint64_t>> offsets_;  // sequence -> (shard, byte)
  std::string fingerprint_;
};

// Writes `sequences` in the order given. `directory` must not hold a corpus yet; index.json is written last and is the commit.
absl::Status WritePackedCorpus(const std::string& directory, PackedInfo info, const std::vector<PackedSequence>& sequences,
                               uint64_t sequences_per_shard = 8192);

}  // namespace membank
