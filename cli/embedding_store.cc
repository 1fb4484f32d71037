// Byte layout of a chunk file: XXH3-64 of the rest as 16 hex digits, then rows * dimension float32, little-endian.
#include "cli/embedding_store.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/base/progress.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr size_t kChunkTexts = 256;
constexpr size_t kChecksumBytes = 16;

std::string ChunkPath(const std::string& directory, const Embedder& embedder, const std::vector<std::string>& texts) {
  Hasher hasher;
  hasher.Add(embedder.Fingerprint());
  for (const std::string& text : texts) hasher.Add(text);
  return directory + "/embeddings-" + hasher.Hex() + ".bin";
}

// The chunk's numbers, nothing when there is no such file or it is damaged.
std::optional<std::vector<float>> ReadChunk(const std::string& path, size_t numbers) {
  const absl::StatusOr<std::string> bytes = ReadFile(path);
  if (!bytes.ok() || bytes->size() != kChecksumBytes + numbers * sizeof(float)) return std::nullopt;
  const std::string_view payload = std::string_view(*bytes).substr(kChecksumBytes);
  if (Hash64Hex(payload) != std::string_view(*bytes).substr(0, kChecksumBytes)) return std::nullopt;
  std::vector<float> values(numbers);
  std::memcpy(values.data(), payload.data(), payload.size());
  return values;
}

absl::Status WriteChunk(const std::string& path, const std::vector<float>& values) {
  const std::string_view payload(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
  std::string bytes = Hash64Hex(payload);
  bytes += payload;
  return WriteFileAtomic(path, bytes);
}

absl::StatusOr<std::vector<float>> EmbedDistinct(const std::vector<std::string>& texts, Embedder& embedder, const std::string& directory) {
  std::vector<float> all;
  all.reserve(texts.size() * embedder.dimension());
  Progress progress("embed", "texts", texts.size());
  size_t reused = 0;
  for (size_t first = 0; first < texts.size(); first += kChunkTexts) {
    const std::vector<std::string> chunk(texts.begin() + first, texts.begin() + std::min(texts.size(), first + kChunkTexts));
    const std::string path = ChunkPath(directory, embedder, chunk);
    std::optional<std::vector<float>> values = ReadChunk(path, chunk.size() * embedder.dimension());
    if (values) {
      reused += chunk.size();
    } else {
      ASSIGN_OR_RETURN(const std::vector<std::vector<float>> embeddings, embedder.Embed(chunk));
      values.emplace();
      for (const std::vector<float>& embedding : embeddings) values->insert(values->end(), embedding.begin(), embedding.end());
      RETURN_IF_ERROR(WriteChunk(path, *values));
    }
    all.insert(all.end(), values->begin(), values->end());
    progress.Update(first + chunk.size(), reused == 0 ? "" : fmt::format("{} reused", reused));
  }
  return all;
}

}  // namespace

absl::StatusOr<std::vector<float>> EmbedAll(const std::vector<std::string>& texts, Embedder& embedder, const std::string& directory) {
  RETURN_IF_ERROR(MakeDirectories(directory));
  std::vector<std::string> distinct;
  std::vector<size_t> index;  // of each text in `distinct`
  absl::flat_hash_map<std::string, size_t> seen;
  for (const std::string& text : texts) {
    const auto [entry, added] = seen.try_emplace(text, distinct.size());
    if (added) distinct.push_back(text);
    index.push_back(entry->second);
  }
  ASSIGN_OR_RETURN(const std::vector<float> embeddings, EmbedDistinct(distinct, embedder, directory));
  const size_t dimension = embedder.dimension();
  std::vector<float> all;
  all.reserve(texts.size() * dimension);
  for (const size_t i : index) all.insert(all.end(), embeddings.begin() + i * dimension, embeddings.begin() + (i + 1) * dimension);
  return all;
}

}  // namespace membank
