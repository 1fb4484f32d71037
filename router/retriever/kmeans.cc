#include "router/retriever/kmeans.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "common/bank/distance.h"

namespace membank {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// SplitMix64: the standard library's distributions differ between implementations, this does not.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t n) { return static_cast<uint64_t>((static_cast<unsigned __int128>(Next()) * n) >> 64); }
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }

 private:
  uint64_t state_;
};

// A step's sample: the first `count` of a partial Fisher-Yates shuffle of `rows`, in place; ascending so that memory is walked forward.
void Sample(std::vector<uint32_t>& rows, size_t count, Random& random) {
  if (count >= rows.size()) return;
  for (size_t i = 0; i < count; ++i) std::swap(rows[i], rows[i + random.Below(rows.size() - i)]);
  std::sort(rows.begin(), rows.begin() + count);
}

// k-means++ with several candidates per centre, the one that lowers the potential most is taken (Arthur and Vassilvitskii 2007, section 6).
// Stops early, with fewer centroids, when every example is one of them.
std::vector<float> Seed(const Vectors& vectors, absl::Span<const uint32_t> sample, uint32_t clusters, Random& random) {
  const uint32_t c = vectors.dimension;
  std::vector<float> centroids;
  const auto add = [&](uint32_t row) { centroids.insert(centroids.end(), vectors.row(row), vectors.row(row) + c); };
  add(sample[random.Below(sample.size())]);
  std::vector<float> nearest(sample.size(), std::numeric_limits<float>::max()), trial(sample.size()), best(sample.size());
  for (size_t i = 0; i < sample.size(); ++i) nearest[i] = SquaredDistance(vectors.row(sample[i]), centroids.data(), c);
  const int trials = 2 + static_cast<int>(std::log(clusters));
  while (centroids.size() < static_cast<size_t>(clusters) * c) {
    const double potential = std::accumulate(nearest.begin(), nearest.end(), 0.0);
    if (potential <= 0) break;
    double best_potential = kInfinity;
    size_t chosen = 0;
    for (int t = 0; t < trials; ++t) {
      double target = random.Unit() * potential;
      size_t candidate = 0;
      for (size_t i = 0; i < sample.size(); ++i) {
        if (nearest[i] <= 0) continue;
        candidate = i;  // the last one with a distance catches rounding
        target -= nearest[i];
        if (target < 0) break;
      }
      double sum = 0;
      for (size_t i = 0; i < sample.size(); ++i) {
        trial[i] = std::min(nearest[i], SquaredDistance(vectors.row(sample[i]), vectors.row(sample[candidate]), c));
        sum += trial[i];
      }
      if (sum < best_potential) {
        best_potential = sum;
        chosen = candidate;
        best.swap(trial);
      }
    }
    add(sample[chosen]);
    nearest.swap(best);
  }
  return centroids;
}

// How good centroids are for a sample: first how many assignments exceed the fair share, then the sum of squared distances.
struct Score {
  uint64_t excess = std::numeric_limits<uint64_t>::max();
  double inertia = kInfinity;
  bool operator<(const Score& other) const { return excess != other.excess ? excess < other.excess : inertia < other.inertia; }
};

class Node {
 public:
  Node(const Vectors& vectors, absl::Span<const uint32_t> rows, const KMeansOptions& options, uint64_t seed)
      : vectors_(vectors), options_(options), rows_(rows.begin(), rows.end()), random_(seed),
        sample_size_(std::min<size_t>(rows.size(), options.examples_per_step)) {}

  std::vector<float> Fit() {
    std::vector<float> best;
    Score best_score;
    const bool whole = sample_size_ == rows_.size();
    for (uint32_t restart = 0; restart < (whole ? options_.restarts : 1); ++restart) {
      Sample(rows_, sample_size_, random_);
      std::vector<float> centroids = Seed(vectors_, CurrentSample(), options_.clusters, random_);
      count_ = centroids.size() / vectors_.dimension;
      if (count_ < options_.clusters) return centroids;  // every distinct example is a centroid
      for (uint32_t step = 0; step < options_.steps; ++step) {
        if (step > 0) Sample(rows_, sample_size_, random_);
        const Score score = Assign(centroids);
        Keep(score, centroids, best_score, best);
        Balance();
        if (!Update(centroids)) break;  // nothing moved
      }
      Keep(Assign(centroids), centroids, best_score, best);
    }
    return best;
  }

 private:
  absl::Span<const uint32_t> CurrentSample() const { return absl::MakeConstSpan(rows_).subspan(0, sample_size_); }

  size_t Limit() const { return static_cast<size_t>(std::ceil(options_.balance * sample_size_ / count_)); }

  static void Keep(const Score& score, const std::vector<float>& centroids, Score& best_score, std::vector<float>& best) {
    if (!(score < best_score)) return;
    best_score = score;
    best = centroids;
  }

  Score Assign(const std::vector<float>& centroids) {
    assigned_.resize(sample_size_);
    sizes_.assign(count_, 0);
    Score score{0, 0};
    for (size_t i = 0; i < sample_size_; ++i) {
      float distance = 0;
      assigned_[i] = Nearest(vectors_.row(rows_[i]), centroids.data(), count_, vectors_.dimension, &distance);
      score.inertia += distance;
      ++sizes_[assigned_[i]];
    }
    for (const size_t size : sizes_) score.excess += size > Limit() ? size - Limit() : 0;
    return score;
  }

  // The largest cluster above the limit shares its examples evenly, at random, with the smallest; again until none is above (at most once
  // per cluster).
  void Balance() {
    for (uint32_t round = 0; round < count_; ++round) {
      const uint32_t large = std::max_element(sizes_.begin(), sizes_.end()) - sizes_.begin();
      const uint32_t small = std::min_element(sizes_.begin(), sizes_.end()) - sizes_.begin();
      if (sizes_[large] <= Limit()) return;
      std::vector<size_t> members;
      for (size_t i = 0; i < sample_size_; ++i) {
        if (assigned_[i] == large) members.push_back(i);
      }
      for (size_t i = 0; i < members.size() / 2; ++i) {
        std::swap(members[i], members[i + random_.Below(members.size() - i)]);
        assigned_[members[i]] = small;
      }
      sizes_[small] += members.size() / 2;
      sizes_[large] -= members.size() / 2;
    }
  }

  // Centroids become the means of their examples; one without examples stays. False when none changed.
  bool Update(std::vector<float>& centroids) {
    const uint32_t c = vectors_.dimension;
    sums_.assign(static_cast<size_t>(count_) * c, 0.0);
    for (size_t i = 0; i < sample_size_; ++i) {
      double* sum = &sums_[static_cast<size_t>(assigned_[i]) * c];
      const float* row = vectors_.row(rows_[i]);
      for (uint32_t j = 0; j < c; ++j) sum[j] += row[j];
    }
    bool moved = false;
    for (uint32_t cluster = 0; cluster < count_; ++cluster) {
      if (sizes_[cluster] == 0) continue;
      for (uint32_t j = 0; j < c; ++j) {
        float& value = centroids[static_cast<size_t>(cluster) * c + j];
        const float mean = static_cast<float>(sums_[static_cast<size_t>(cluster) * c + j] / sizes_[cluster]);
        moved |= mean != value;
        value = mean;
      }
    }
    return moved;
  }

  const Vectors& vectors_;
  const KMeansOptions& options_;
  std::vector<uint32_t> rows_;  // the first sample_size_ are the current sample
  Random random_;
  const size_t sample_size_;
  uint32_t count_ = 0;
  std::vector<uint32_t> assigned_;
  std::vector<size_t> sizes_;
  std::vector<double> sums_;
};

}  // namespace

uint32_t Nearest(const float* vector, const float* centroids, uint32_t count, uint32_t dimension, float* distance) {
  uint32_t best = 0;
  *distance = SquaredDistance(vector, centroids, dimension);
  for (uint32_t i = 1; i < count; ++i) {
    const float d = SquaredDistance(vector, centroids + static_cast<size_t>(i) * dimension, dimension);
    if (d < *distance) {
      *distance = d;
      best = i;
    }
  }
  return best;
}

std::vector<float> BalancedKMeans(const Vectors& vectors, absl::Span<const uint32_t> rows, const KMeansOptions& options, uint64_t seed) {
  std::vector<float> centroids = Node(vectors, rows, options, seed).Fit();
  const uint32_t c = vectors.dimension;
  while (centroids.size() < static_cast<size_t>(options.clusters) * c) {
    const size_t end = centroids.size();
    centroids.resize(end + c);
    std::memcpy(&centroids[end], &centroids[0], c * sizeof(float));
  }
  return centroids;
}

}  // namespace membank
