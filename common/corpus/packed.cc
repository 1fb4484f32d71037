// Byte layout, little-endian.
//
//   shard-NNNNN.bin := "MBKSHARD"  version u32 = 1  token_bytes u32 (2 | 4)  records u64  record*
//   record          := leaf u32  documents u32  tokens u32  document_ends u32[documents]  ids u16|u32[tokens]  zeros to a multiple of 4
//   index.json      := {"magic", "version", the fields of PackedInfo, "shards": [{"file", "bytes", "sequences", "xxh3"}], "xxh3"}
//                      shards' xxh3 is XXH3-64 of the file; the index's own is over its JSON without that key (sorted keys, no space).
#include "common/corpus/packed.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "common/base/hash.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;

constexpr char kShardMagic[] = "MBKSHARD";
constexpr char kIndexMagic[] = "membank-corpus";
constexpr uint32_t kVersion = 1;
constexpr size_t kShardHeaderBytes = 24;
constexpr size_t kRecordHeaderBytes = 12;

uint32_t TokenBytes(uint32_t vocab_size) { return vocab_size <= 65536 ? 2 : 4; }
std::string IndexPath(const std::string& directory) { return directory + "/index.json"; }
std::string ShardName(size_t number) { return fmt::format("shard-{:05}.bin", number); }
std::string_view AsChars(absl::Span<const uint8_t> bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

uint32_t LoadU32(const uint8_t* at) {
  uint32_t value;
  std::memcpy(&value, at, 4);
  return value;
}

template <typename T>
void Append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

uint64_t RecordBytes(uint64_t documents, uint64_t tokens, uint32_t token_bytes) {
  return kRecordHeaderBytes + documents * 4 + (tokens * token_bytes + 3) / 4 * 4;
}

uint64_t LeafCount(const PackedInfo& info) {
  uint64_t leaves = 1;
  for (uint32_t level = 0; level < info.depth; ++level) leaves *= info.fan_out;
  return leaves;
}

Json InfoToJson(const PackedInfo& info) {
  return {{"magic", kIndexMagic},       {"version", kVersion},       {"tokenizer_hash", info.tokenizer_hash},
          {"tree_fingerprint", info.tree_fingerprint}, {"fan_out", info.fan_out}, {"depth", info.depth},
          {"sequence_length", info.sequence_length},   {"vocab_size", info.vocab_size}, {"sequences", info.sequences},
          {"documents", info.documents}, {"tokens", info.tokens}};
}

PackedInfo InfoFromJson(const Json& index) {
  PackedInfo info;
  info.tokenizer_hash = index.at("tokenizer_hash");
  info.tree_fingerprint = index.at("tree_fingerprint");
  info.fan_out = index.at("fan_out");
  info.depth = index.at("depth");
  info.sequence_length = index.at("sequence_length");
  info.vocab_size = index.at("vocab_size");
  info.sequences = index.at("sequences");
  info.documents = index.at("documents");
  info.tokens = index.at("tokens");
  return info;
}

std::string IndexChecksum(Json index) {
  index.erase("xxh3");
  return Hash128Hex(index.dump());
}

absl::Status CheckInfo(const PackedInfo& info) {
  if (info.fan_out < 2 || info.fan_out > 4096) return InvalidArgument("packed corpus: fan-out {} is outside 2..4096", info.fan_out);
  if (info.depth < 1 || info.depth > 8) return InvalidArgument("packed corpus: depth {} is outside 1..8", info.depth);
  if (LeafCount(info) >= (uint64_t{1} << 31)) return InvalidArgument("packed corpus: {} leaves; at most 2^31 - 1", LeafCount(info));
  if (info.sequence_length < 1 || info.sequence_length > (1u << 24)) {
    return InvalidArgument("packed corpus: sequence length {} is outside 1..{}", info.sequence_length, 1u << 24);
  }
  if (info.vocab_size < 1) return InvalidArgument("packed corpus: the vocabulary is empty");
  return absl::OkStatus();
}

// What a sequence must satisfy, before writing and after reading.
absl::Status CheckSequence(const PackedInfo& info, uint32_t leaf, absl::Span<const uint32_t> ends, uint64_t tokens) {
  if (leaf >= LeafCount(info)) return InvalidArgument("leaf {} is outside 0..{}", leaf, LeafCount(info) - 1);
  if (tokens == 0 || tokens > info.sequence_length) return InvalidArgument("{} tokens; allowed are 1..{}", tokens, info.sequence_length);
  uint32_t previous = 0;
  for (const uint32_t end : ends) {
    if (end <= previous) return InvalidArgument("document end {} after {}; ends must ascend", end, previous);
    previous = end;
  }
  if (previous != tokens) return InvalidArgument("the last document ends at {} of {} tokens", previous, tokens);
  return absl::OkStatus();
}

absl::Status AppendRecord(const PackedInfo& info, const PackedSequence& sequence, std::string& out) {
  RETURN_IF_ERROR(CheckSequence(info, sequence.leaf, sequence.document_ends, sequence.tokens.size()));
  Append(out, sequence.leaf);
  Append(out, static_cast<uint32_t>(sequence.document_ends.size()));
  Append(out, static_cast<uint32_t>(sequence.tokens.size()));
  for (const uint32_t end : sequence.document_ends) Append(out, end);
  const uint32_t token_bytes = TokenBytes(info.vocab_size);
  for (const int32_t id : sequence.tokens) {
    if (id < 0 || static_cast<uint32_t>(id) >= info.vocab_size) return InvalidArgument("token id {} is outside 0..{}", id, info.vocab_size - 1);
    if (token_bytes == 2) Append(out, static_cast<uint16_t>(id));
    else Append(out, static_cast<uint32_t>(id));
  }
  out.resize((out.size() + 3) / 4 * 4, '\0');
  return absl::OkStatus();
}

struct ShardEntry {
  std::string file, checksum;
  uint64_t bytes = 0, sequences = 0;
};

struct Index {
  PackedInfo info;
  std::vector<ShardEntry> shards;
  std::string fingerprint;
};

absl::StatusOr<Index> ReadIndex(const std::string& directory) {
  const std::string path = IndexPath(directory);
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok() && absl::IsNotFound(text.status())) {
    return NotFound("{} holds no packed corpus (no index.json); `membank corpus build --output {}` writes one", directory, directory);
  }
  RETURN_IF_ERROR(text.status());
  const absl::StatusOr<Json> parsed = ParseJsonObject(*text, path);
  if (!parsed.ok()) return DataLoss("{}; the file is damaged", std::string(parsed.status().message()));
  const Json& json = *parsed;
  Index index;
  try {
    if (json.at("magic") != kIndexMagic) return DataLoss("{}: magic is {}, not \"{}\"", path, json.at("magic").dump(), kIndexMagic);
    index.fingerprint = IndexChecksum(json);
    if (json.at("xxh3") != index.fingerprint) {
      return DataLoss("{}: its checksum is {} but it says {}; the file is damaged", path, index.fingerprint, json.at("xxh3").dump());
    }
    if (json.at("version") != kVersion) {
      return FailedPrecondition("{}: version {}; this program reads version {}", path, json.at("version").dump(), kVersion);
    }
    index.info = InfoFromJson(json);
    for (const Json& shard : json.at("shards")) {
      index.shards.push_back({shard.at("file"), shard.at("xxh3"), shard.at("bytes"), shard.at("sequences")});
    }
  } catch (const Json::exception& error) {
    return DataLoss("{}: {}; the file is damaged", path, error.what());
  }
  if (const absl::Status status = CheckInfo(index.info); !status.ok()) return DataLoss("{}: {}", path, std::string(status.message()));
  return index;
}

// Checks the whole shard and appends the byte offset of each of its records.
absl::Status ScanShard(const MappedFile& file, const ShardEntry& entry, const PackedInfo& info, std::vector<uint64_t>& offsets,
                       uint64_t& documents, uint64_t& tokens) {
  const absl::Span<const uint8_t> bytes = file.bytes();
  const std::string& path = file.path();
  if (bytes.size() != entry.bytes) return DataLoss("{}: {} bytes; index.json says {}: the shard is truncated or damaged", path, bytes.size(), entry.bytes);
  if (bytes.size() < kShardHeaderBytes || AsChars(bytes.subspan(0, 8)) != std::string_view(kShardMagic, 8)) {
    return DataLoss("{}: no {} at offset 0; the shard is damaged", path, kShardMagic);
  }
  const uint32_t token_bytes = TokenBytes(info.vocab_size);
  if (LoadU32(&bytes[8]) != kVersion || LoadU32(&bytes[12]) != token_bytes) {
    return DataLoss("{}: version {} with {} bytes per token at offset 8; expected version {} with {}", path, LoadU32(&bytes[8]), LoadU32(&bytes[12]),
                    kVersion, token_bytes);
  }
  uint64_t at = kShardHeaderBytes;
  for (uint64_t record = 0; record < entry.sequences; ++record) {
    if (bytes.size() - at < kRecordHeaderBytes) return DataLoss("{}: record {} at offset {} lies beyond the end of the file", path, record, at);
    const uint64_t record_documents = LoadU32(&bytes[at + 4]), record_tokens = LoadU32(&bytes[at + 8]);
    const uint64_t size = RecordBytes(record_documents, record_tokens, token_bytes);
    if (size > bytes.size() - at) return DataLoss("{}: record {} at offset {} lies beyond the end of the file", path, record, at);
    std::vector<uint32_t> ends(record_documents);
    std::memcpy(ends.data(), &bytes[at + kRecordHeaderBytes], record_documents * 4);
    if (const absl::Status status = CheckSequence(info, LoadU32(&bytes[at]), ends, record_tokens); !status.ok()) {
      return DataLoss("{}: record {} at offset {}: {}", path, record, at, std::string(status.message()));
    }
    offsets.push_back(at);
    documents += record_documents;
    tokens += record_tokens;
    at += size;
  }
  if (at != bytes.size()) return DataLoss("{}: {} bytes after the last record at offset {}", path, bytes.size() - at, at);
  const std::string checksum = Hash64Hex(AsChars(bytes));
  if (checksum != entry.checksum) {
    return DataLoss("{}: bytes 0..{} hash to {}; index.json says {}: the shard is damaged", path, bytes.size(), checksum, entry.checksum);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<PackedCorpus>> PackedCorpus::Open(const std::string& directory) {
  ASSIGN_OR_RETURN(Index index, ReadIndex(directory));
  std::unique_ptr<PackedCorpus> corpus(new PackedCorpus());
  uint64_t documents = 0, tokens = 0;
  for (uint32_t number = 0; number < index.shards.size(); ++number) {
    const ShardEntry& entry = index.shards[number];
    if (entry.file != ShardName(number)) return DataLoss("{}: shard {} is named '{}', not {}", IndexPath(directory), number, entry.file, ShardName(number));
    absl::StatusOr<std::shared_ptr<MappedFile>> file = MappedFile::Open(directory + "/" + entry.file);
    if (!file.ok() && absl::IsNotFound(file.status())) return DataLoss("{}/{} is missing; index.json lists it", directory, entry.file);
    RETURN_IF_ERROR(file.status());
    std::vector<uint64_t> offsets;
    RETURN_IF_ERROR(ScanShard(**file, entry, index.info, offsets, documents, tokens));
    for (const uint64_t offset : offsets) corpus->offsets_.emplace_back(number, offset);
    corpus->shards_.push_back(*std::move(file));
  }
  if (corpus->offsets_.size() != index.info.sequences || documents != index.info.documents || tokens != index.info.tokens) {
    return DataLoss("{}: {} sequences, {} documents, {} tokens; the shards hold {}, {}, {}", IndexPath(directory), index.info.sequences,
                    index.info.documents, index.info.tokens, corpus->offsets_.size(), documents, tokens);
  }
  corpus->info_ = std::move(index.info);
  corpus->fingerprint_ = std::move(index.fingerprint);
  return corpus;
}

absl::StatusOr<PackedSequence> PackedCorpus::Read(uint64_t index) const {
  if (index >= offsets_.size()) return OutOfRange("sequence {} of a corpus with {}", index, offsets_.size());
  const auto [shard, offset] = offsets_[index];
  const uint8_t* at = shards_[shard]->bytes().data() + offset;
  PackedSequence sequence;
  sequence.leaf = LoadU32(at);
  sequence.document_ends.resize(LoadU32(at + 4));
  sequence.tokens.resize(LoadU32(at + 8));
  at += kRecordHeaderBytes;
  std::memcpy(sequence.document_ends.data(), at, sequence.document_ends.size() * 4);
  at += sequence.document_ends.size() * 4;
  const uint32_t token_bytes = TokenBytes(info_.vocab_size);
  for (int32_t& id : sequence.tokens) {
    uint32_t value = 0;
    std::memcpy(&value, at, token_bytes);
    at += token_bytes;
    // The file was whole when it was opened; this guards the vocabulary look-up against one that changed underneath.
    if (value >= info_.vocab_size) return DataLoss("{}: sequence {} holds token id {} of a vocabulary of {}", shards_[shard]->path(), index, value, info_.vocab_size);
    id = static_cast<int32_t>(value);
  }
  return sequence;
}

std::string PackedCorpus::Fingerprint() const { return fingerprint_; }

absl::Status WritePackedCorpus(const std::string& directory, PackedInfo info, const std::vector<PackedSequence>& sequences,
                               uint64_t sequences_per_shard) {
  RETURN_IF_ERROR(CheckInfo(info));
  if (sequences.empty()) return InvalidArgument("packed corpus: there are no sequences to write");
  if (sequences_per_shard == 0) return InvalidArgument("packed corpus: sequences_per_shard is 0; it must be at least 1");
  RETURN_IF_ERROR(MakeDirectories(directory));
  if (std::filesystem::exists(IndexPath(directory))) return AlreadyExists("{} holds a packed corpus already; choose another folder or remove it", directory);
  info.sequences = sequences.size();
  info.documents = info.tokens = 0;
  Json shards = Json::array();
  for (uint64_t first = 0; first < sequences.size(); first += sequences_per_shard) {
    const uint64_t count = std::min<uint64_t>(sequences_per_shard, sequences.size() - first);
    std::string bytes(kShardMagic, 8);
    Append(bytes, kVersion);
    Append(bytes, TokenBytes(info.vocab_size));
    Append(bytes, count);
    for (uint64_t i = first; i < first + count; ++i) {
      if (const absl::Status status = AppendRecord(info, sequences[i], bytes); !status.ok()) return Annotate(status, fmt::format("packed corpus: sequence {}", i));
      info.documents += sequences[i].document_ends.size();
      info.tokens += sequences[i].tokens.size();
    }
    const std::string name = ShardName(shards.size());
    RETURN_IF_ERROR(WriteFileAtomic(directory + "/" + name, bytes));
    shards.push_back({{"file", name}, {"bytes", bytes.size()}, {"sequences", count}, {"xxh3", Hash64Hex(bytes)}});
  }
  Json index = InfoToJson(info);
  index["shards"] = std::move(shards);
  index["xxh3"] = IndexChecksum(index);
  return WriteFileAtomic(IndexPath(directory), index.dump(2) + "\n");
}

}  // namespace membank
