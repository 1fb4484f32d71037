// Byte layout of a chunk file: XXH3-64 of the rest as 16 hex digits, then rows * dimension float32, little-endian.
#include "cli/embedding_store.h"

#include <algorithm>
#include <cstring>
#include <optional>

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

}  // namespace

absl::StatusOr<std::vector<float>> EmbedAll(const std::vector<std::string>& texts, Embedder& embedder, const std::string& directory) {
  RETURN_IF_ERROR(MakeDirectories(directory));
  std::vector<float> all;
  all.reserve(texts.size() * embedder.dimension());
  Progress progress("embed", "windows", texts.size());
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

}  // namespace membank
