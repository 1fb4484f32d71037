#include "router/retriever/tree_builder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "common/base/status_macros.h"
#include "common/base/thread_pool.h"

namespace membank {
namespace {

constexpr uint64_t kMaxClusters = uint64_t{1} << 24;
constexpr size_t kNodesPerReport = 64;
constexpr uint64_t kListedClusters = 64;

absl::Status Check(const Vectors& embeddings, size_t count, const TreeOptions& options) {
  if (options.fan_out < 2 || options.fan_out > 4096) return InvalidArgument("fan-out {} is outside 2..4096", options.fan_out);
  if (options.depth < 1 || options.depth > 8) return InvalidArgument("depth {} is outside 1..8", options.depth);
  if (std::pow(options.fan_out, options.depth) > static_cast<double>(kMaxClusters)) {
    return InvalidArgument("fan-out {} to the depth {} is more than {} clusters; choose a smaller fan-out or depth", options.fan_out, options.depth,
                           kMaxClusters);
  }
  if (options.steps < 1 || options.examples_per_step < options.fan_out) {
    return InvalidArgument("{} steps of {} examples; needed are at least 1 step and fan-out ({}) examples", options.steps, options.examples_per_step,
                           options.fan_out);
  }
  if (count == 0) return InvalidArgument("there is no embedding to fit a tree to");
  if (count > UINT32_MAX) return InvalidArgument("{} embeddings; at most {} fit one tree", count, UINT32_MAX);
  for (size_t i = 0; i < count * embeddings.dimension; ++i) {
    if (!std::isfinite(embeddings.data[i])) return InvalidArgument("embedding {} holds {}; it must be finite", i / embeddings.dimension, embeddings.data[i]);
  }
  return absl::OkStatus();
}

uint64_t NodeSeed(uint64_t seed, uint32_t level, uint64_t node) {
  uint64_t z = seed ^ (uint64_t{level} << 56) ^ (node * 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  return z ^ (z >> 27);
}

// Examples sorted by node, and where each node's begin.
struct Grouping {
  std::vector<uint32_t> rows;
  std::vector<size_t> begins;  // nodes + 1
  absl::Span<const uint32_t> of(size_t node) const { return absl::MakeConstSpan(rows).subspan(begins[node], begins[node + 1] - begins[node]); }
};

Grouping Group(const std::vector<uint32_t>& node_of, size_t nodes) {
  Grouping grouping;
  grouping.begins.assign(nodes + 1, 0);
  for (const uint32_t node : node_of) ++grouping.begins[node + 1];
  std::partial_sum(grouping.begins.begin(), grouping.begins.end(), grouping.begins.begin());
  std::vector<size_t> next(grouping.begins.begin(), grouping.begins.end() - 1);
  grouping.rows.resize(node_of.size());
  for (uint32_t row = 0; row < node_of.size(); ++row) grouping.rows[next[node_of[row]]++] = row;
  return grouping;
}

// For people who look at the tree: clusters in use, the largest share, and the sizes when they fit a line.
void Describe(const std::vector<uint32_t>& node_of, uint64_t clusters, uint32_t level, std::map<std::string, std::string>& metadata) {
  std::vector<size_t> sizes(clusters, 0);
  for (const uint32_t cluster : node_of) ++sizes[cluster];
  const size_t used = clusters - std::count(sizes.begin(), sizes.end(), size_t{0}), largest = *std::max_element(sizes.begin(), sizes.end());
  std::string text = fmt::format("{} of {} clusters used, largest share {:.3f}", used, clusters, static_cast<double>(largest) / node_of.size());
  if (clusters <= kListedClusters) text += fmt::format(", sizes {}", fmt::join(sizes, " "));
  metadata[fmt::format("level.{}", level)] = std::move(text);
}

// Children of a node that no example reaches: copies of the node itself, so that the level is complete.
void FillWithParent(const float* parent, uint32_t fan_out, uint32_t dimension, float* children) {
  for (uint32_t i = 0; i < fan_out; ++i) std::copy(parent, parent + dimension, children + static_cast<size_t>(i) * dimension);
}

}  // namespace

absl::StatusOr<ClusterTree> FitTree(const Vectors& embeddings, size_t count, const TreeOptions& options,
                                    std::map<std::string, std::string> metadata,
                                    const std::function<void(uint64_t, uint64_t)>& progress) {
  RETURN_IF_ERROR(Check(embeddings, count, options));
  const uint32_t k = options.fan_out, c = embeddings.dimension;
  uint64_t total = 0, nodes = 1;
  for (uint32_t level = 1; level <= options.depth; ++level, nodes *= k) total += nodes;

  ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  const KMeansOptions kmeans{.clusters = k, .steps = options.steps, .examples_per_step = options.examples_per_step};
  std::vector<std::vector<float>> levels;
  std::vector<uint32_t> node_of(count, 0);  // the cluster of the level above that each example reached
  nodes = 1;
  uint64_t done = 0;
  for (uint32_t level = 1; level <= options.depth; ++level, nodes *= k) {
    const Grouping grouping = Group(node_of, nodes);
    std::vector<float> centroids(nodes * k * c);
    const auto fit_node = [&](size_t node) {
      float* children = &centroids[node * k * c];
      const absl::Span<const uint32_t> rows = grouping.of(node);
      if (rows.empty()) return FillWithParent(&levels.back()[node * c], k, c, children);
      const std::vector<float> fitted = BalancedKMeans(embeddings, rows, kmeans, NodeSeed(options.seed, level, node));
      std::copy(fitted.begin(), fitted.end(), children);
      float distance = 0;
      for (const uint32_t row : rows) node_of[row] = static_cast<uint32_t>(node * k) + Nearest(embeddings.row(row), children, k, c, &distance);
    };
    for (size_t first = 0; first < nodes; first += kNodesPerReport) {
      const size_t batch = std::min<size_t>(kNodesPerReport, nodes - first);
      ParallelFor(pool, batch, [&](size_t i) { fit_node(first + i); });
      done += batch;
      if (progress) progress(done, total);
    }
    levels.push_back(std::move(centroids));
    Describe(node_of, nodes * k, level, metadata);
  }
  metadata["examples"] = std::to_string(count);
  metadata["seed"] = std::to_string(options.seed);
  return ClusterTree::Create(k, c, std::move(levels), std::move(metadata));
}

}  // namespace membank
