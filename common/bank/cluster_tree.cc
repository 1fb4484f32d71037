#include "common/bank/cluster_tree.h"

#include <cmath>
#include <cstdlib>

#include "common/bank/distance.h"
#include "common/base/hash.h"
#include "common/base/status_macros.h"
#include "common/tensors/safetensors.h"

namespace membank {
namespace {

constexpr char kFormat[] = "membank-tree";
constexpr int kFormatVersion = 1;

std::string TensorName(size_t level) { return fmt::format("centroids.{}", level); }

std::string_view AsBytes(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

absl::StatusOr<uint32_t> MetadataNumber(const std::map<std::string, std::string>& metadata, const std::string& key, uint32_t low,
                                        uint32_t high) {
  const auto it = metadata.find(key);
  if (it == metadata.end()) return InvalidArgument("metadata key '{}' is missing; is this a cluster tree written by membank?", key);
  char* end = nullptr;
  const long long value = std::strtoll(it->second.c_str(), &end, 10);
  if (it->second.empty() || *end != '\0' || value < low || value > high) {
    return InvalidArgument("metadata key '{}' is '{}'; it must be a number from {} to {}", key, it->second, low, high);
  }
  return static_cast<uint32_t>(value);
}

absl::Status CheckLevel(const TensorView& tensor, uint64_t rows, uint32_t dimension) {
  const std::vector<int64_t> shape = {static_cast<int64_t>(rows), dimension};
  if (tensor.dtype != DType::kF32) return InvalidArgument("{} has dtype {}; it must be F32", tensor.name, DTypeName(tensor.dtype));
  if (tensor.shape != shape) return InvalidArgument("{} has shape [{}]; it must be [{}]", tensor.name, fmt::join(tensor.shape, ", "), fmt::join(shape, ", "));
  return absl::OkStatus();
}

absl::StatusOr<ClusterTree> FromFile(const SafetensorsFile& file) {
  const auto format = file.metadata().find("format");
  if (format == file.metadata().end() || format->second != kFormat) {
    return InvalidArgument("not a cluster tree: its metadata has no format '{}'; `membank corpus build --fit-tree` writes one", kFormat);
  }
  ASSIGN_OR_RETURN(const uint32_t fan_out, MetadataNumber(file.metadata(), "fan_out", 2, 4096));
  ASSIGN_OR_RETURN(const uint32_t depth, MetadataNumber(file.metadata(), "depth", 1, 8));
  ASSIGN_OR_RETURN(const uint32_t dimension, MetadataNumber(file.metadata(), "dimension", 1, 65536));
  std::vector<std::vector<float>> centroids;
  uint64_t rows = 1;
  for (uint32_t level = 1; level <= depth; ++level) {
    rows *= fan_out;
    ASSIGN_OR_RETURN(const TensorView tensor, file.Find(TensorName(level)));
    RETURN_IF_ERROR(CheckLevel(tensor, rows, dimension));
    ASSIGN_OR_RETURN(std::vector<float> values, ToFloats(tensor));
    centroids.push_back(std::move(values));
  }
  std::map<std::string, std::string> metadata = file.metadata();
  for (const char* key : {"format", "version", "fan_out", "depth", "dimension"}) metadata.erase(key);
  return ClusterTree::Create(fan_out, dimension, std::move(centroids), std::move(metadata));
}

}  // namespace

absl::StatusOr<ClusterTree> ClusterTree::Create(uint32_t fan_out, uint32_t dimension, std::vector<std::vector<float>> centroids,
                                                std::map<std::string, std::string> metadata) {
  if (fan_out < 2 || fan_out > 4096) return InvalidArgument("cluster tree: fan-out {} is outside 2..4096", fan_out);
  if (dimension == 0) return InvalidArgument("cluster tree: the centroids have dimension 0");
  if (centroids.empty() || centroids.size() > 8) return InvalidArgument("cluster tree: {} levels; allowed are 1..8", centroids.size());
  uint64_t rows = 1;
  for (size_t level = 1; level <= centroids.size(); ++level) {
    rows *= fan_out;
    if (rows >= (uint64_t{1} << 31)) return InvalidArgument("cluster tree: level {} would have {} clusters; at most 2^31 - 1", level, rows);
    if (centroids[level - 1].size() != rows * dimension) {
      return InvalidArgument("cluster tree: level {} has {} numbers; {} clusters of dimension {} need {}", level, centroids[level - 1].size(), rows,
                             dimension, rows * dimension);
    }
    for (size_t i = 0; i < centroids[level - 1].size(); ++i) {
      if (!std::isfinite(centroids[level - 1][i])) {
        return InvalidArgument("cluster tree: level {} cluster {} holds {}; centroids must be finite", level, i / dimension, centroids[level - 1][i]);
      }
    }
  }
  ClusterTree tree;
  tree.fan_out_ = fan_out;
  tree.dimension_ = dimension;
  tree.centroids_ = std::move(centroids);
  tree.metadata_ = std::move(metadata);
  return tree;
}

absl::StatusOr<ClusterTree> ClusterTree::Load(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  absl::StatusOr<ClusterTree> tree = FromFile(*file);
  if (!tree.ok()) return Annotate(tree.status(), path);
  const auto stated = tree->metadata_.find("fingerprint");
  if (stated != tree->metadata_.end() && stated->second != tree->Fingerprint()) {
    return DataLoss("{}: the centroids hash to {} but the file was written with {}; the file is damaged", path, tree->Fingerprint(), stated->second);
  }
  return tree;
}

absl::Status ClusterTree::Save(const std::string& path) const {
  std::vector<TensorView> tensors;
  int64_t rows = 1;
  for (size_t level = 1; level <= centroids_.size(); ++level) {
    rows *= fan_out_;
    const std::vector<float>& values = centroids_[level - 1];
    tensors.push_back({TensorName(level), DType::kF32, {rows, dimension_},
                       {reinterpret_cast<const uint8_t*>(values.data()), values.size() * sizeof(float)}});
  }
  std::map<std::string, std::string> metadata = metadata_;
  metadata["format"] = kFormat;
  metadata["version"] = std::to_string(kFormatVersion);
  metadata["fan_out"] = std::to_string(fan_out_);
  metadata["depth"] = std::to_string(depth());
  metadata["dimension"] = std::to_string(dimension_);
  metadata["fingerprint"] = Fingerprint();
  return WriteSafetensors(path, tensors, metadata);
}

absl::Span<const float> ClusterTree::centroid(BlockId id) const {
  return {centroids_[id.level - 1].data() + static_cast<size_t>(id.cluster) * dimension_, dimension_};
}

std::string ClusterTree::Fingerprint() const {
  Hasher hasher;
  hasher.Add(fan_out_).Add(dimension_).Add(depth());
  for (const std::vector<float>& level : centroids_) hasher.Add(AsBytes(level));
  const auto embedder = metadata_.find("embedder");
  return hasher.Add(embedder == metadata_.end() ? "" : embedder->second).Hex();
}

absl::StatusOr<std::vector<PathStep>> ClusterTree::Descend(absl::Span<const float> embedding) const {
  if (embedding.size() != dimension_) {
    return InvalidArgument("the embedding has {} numbers; the cluster tree has dimension {}", embedding.size(), dimension_);
  }
  std::vector<PathStep> steps;
  steps.reserve(depth());
  uint32_t parent = 0;
  for (const std::vector<float>& level : centroids_) {
    const uint32_t first = parent * fan_out_;
    PathStep best{first, SquaredDistance(embedding.data(), level.data() + static_cast<size_t>(first) * dimension_, dimension_)};
    for (uint32_t cluster = first + 1; cluster < first + fan_out_; ++cluster) {
      const float distance = SquaredDistance(embedding.data(), level.data() + static_cast<size_t>(cluster) * dimension_, dimension_);
      if (distance < best.distance) best = {cluster, distance};  // the first of equals: copies of a centroid lie after it
    }
    steps.push_back(best);
    parent = best.cluster;
  }
  return steps;
}

BlockPath ClusterTree::PathOf(const std::vector<PathStep>& steps) const {
  return {MemoryMode::kFetched, static_cast<uint32_t>(steps.size()), steps.empty() ? 0 : steps.back().cluster};
}

}  // namespace membank
