// Causal grouped-query attention over ragged segments, forward (online softmax, Milakov and Gimelshein 2018) and backward (recomputing the
// probabilities from their log-sum, as in FlashAttention-2). Tiles of 32 queries by 32 keys in fp32; a converted tile of keys serves all heads
// of its group. Every output element is summed in one fixed order, whatever the number of threads.
#pragma once

#include <cstdlib>
#include <cstring>
#include <vector>

namespace membank::MEMBANK_ISA {
namespace {

constexpr int64_t kTile = 32;      // a multiple of kPad at both instruction sets
constexpr int64_t kFewQueries = 4;
static_assert(kTile % kPad == 0);

struct Scratch {   // one allocation per task, handed out in pieces
  explicit Scratch(int64_t floats) : begin(static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>((floats * 4 + 63) / 64 * 64)))), next(begin) {}
  ~Scratch() { std::free(begin); }
  float* Take(int64_t floats) {
    float* taken = next;
    next += floats;
    return taken;
  }
  float *begin, *next;
};

// to [rows, width] fp32, zero beyond d; rows beyond `rows` up to `tile` are zero too
template <typename T>
inline void LoadRows(const T* from, int64_t stride, int64_t rows, int64_t tile, int64_t d, float* to, int64_t width) {
  for (int64_t r = 0; r < tile; ++r) {
    if (r >= rows) {
      std::memset(to + r * width, 0, static_cast<size_t>(width) * 4);
      continue;
    }
#pragma omp simd
    for (int64_t i = 0; i < d; ++i) to[r * width + i] = Load(from + r * stride, i);
    for (int64_t i = d; i < width; ++i) to[r * width + i] = 0;
  }
}

inline void Transpose(const float* from, int64_t rows, int64_t columns, int64_t stride, float* to, int64_t to_stride) {
  for (int64_t c = 0; c < columns; ++c) {
#pragma omp simd
    for (int64_t r = 0; r < rows; ++r) to[c * to_stride + r] = from[r * stride + c];
  }
}

template <typename T>
inline void StoreRow(T* to, const float* from, int64_t d, float scale) {
#pragma omp simd
  for (int64_t i = 0; i < d; ++i) Store(to, i, from[i] * scale);
}

inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

// The first key that the query at `position` sees.
inline int64_t FirstKey(const AttentionShape& shape, int64_t position) {
  return shape.window > 0 && position >= shape.window ? position - shape.window + 1 : 0;
}

// The same within the tile of keys that begins at `key`; kTile when it sees none of them.
inline int FirstOf(const AttentionShape& shape, int64_t position, int64_t key) {
  const int64_t from = FirstKey(shape, position) - key;
  return static_cast<int>(from < 0 ? 0 : Least(kTile, from));
}

// One tile of queries of one group of heads against all keys it may see.
template <typename T>
inline void AttendTile(const AttentionShape& shape, const AttentionSegment& s, int64_t kv_head, int64_t first) {
  const int64_t d = shape.head_dim, width = Padded(d), group = shape.heads / shape.kv_heads;
  const int64_t rows = Least(kTile, s.queries - first), offset = s.keys - s.queries;
  const float scale = shape.scale;
  Scratch scratch(group * kTile * (2 * width + 2) + kTile * 3 * width + kTile * kTile);
  float* q = scratch.Take(group * kTile * width);
  float* out = scratch.Take(group * kTile * width);
  float* largest = scratch.Take(group * kTile);
  float* total = scratch.Take(group * kTile);
  float* k = scratch.Take(kTile * width);
  float* k_t = scratch.Take(kTile * width);
  float* v = scratch.Take(kTile * width);
  float* p = scratch.Take(kTile * kTile);
  for (int64_t h = 0; h < group; ++h) {
    LoadRows(static_cast<const T*>(s.q) + first * s.q_stride + (kv_head * group + h) * d, s.q_stride, rows, kTile, d, q + h * kTile * width,
             width);
  }
  std::memset(out, 0, static_cast<size_t>(group * kTile * width) * 4);
  for (int64_t i = 0; i < group * kTile; ++i) {
    largest[i] = -1e30f;
    total[i] = 0;
  }
  const int64_t visible = offset + first + rows;   // keys that the tile's last row sees
  for (int64_t key = FirstKey(shape, offset + first) / kTile * kTile; key < visible; key += kTile) {
    const int64_t keys = Least(kTile, visible - key);
    LoadRows(static_cast<const T*>(s.k) + kv_head * s.kv_head_stride + key * s.k_stride, s.k_stride, keys, kTile, d, k, width);
    Transpose(k, kTile, width, width, k_t, kTile);
    LoadRows(static_cast<const T*>(s.v) + kv_head * s.kv_head_stride + key * s.k_stride, s.k_stride, keys, kTile, d, v, width);
    for (int64_t h = 0; h < group; ++h) {
      float* o = out + h * kTile * width;
      MatMul<false>(rows, kTile, d, q + h * kTile * width, width, k_t, kTile, p, kTile);
      for (int64_t r = 0; r < rows; ++r) {
        float* row = p + r * kTile;
        const int seen = static_cast<int>(Least(kTile, offset + first + r - key + 1));   // keys of this tile up to the row's own position
        const int from = FirstOf(shape, offset + first + r, key);                        // and from here
        float& top = largest[h * kTile + r];
        float highest = top;
        for (int i = from; i < seen; ++i) highest = row[i] * scale > highest ? row[i] * scale : highest;
        const float shrink = Exp(top - highest);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < kTile; ++i) {   // `int`: as wide as the floats it masks
          const float e = (i < seen) & (i >= from) ? Exp(row[i] * scale - highest) : 0.0f;
          row[i] = e;
          sum += e;
        }
        total[h * kTile + r] = total[h * kTile + r] * shrink + sum;
        if (shrink != 1.0f) {
#pragma omp simd
          for (int64_t i = 0; i < width; ++i) o[r * width + i] *= shrink;
        }
        top = highest;
      }
      MatMul<true>(rows, width, kTile, p, kTile, v, width, o, width);
    }
  }
  for (int64_t h = 0; h < group; ++h) {
    const int64_t head = kv_head * group + h;
    for (int64_t r = 0; r < rows; ++r) {
      const float sum = total[h * kTile + r];
      StoreRow(static_cast<T*>(s.out) + (first + r) * s.out_stride + head * d, out + (h * kTile + r) * width, d, 1.0f / sum);
      if (s.log_sum != nullptr) s.log_sum[head * s.queries + first + r] = largest[h * kTile + r] + std::log(sum);
    }
  }
}

// Decode: one or a few queries, straight over the cached keys and values.
template <typename T>
inline void AttendFew(const AttentionShape& shape, const AttentionSegment& s, int64_t kv_head) {
  const int64_t d = shape.head_dim, group = shape.heads / shape.kv_heads;
  const float scale = shape.scale;
  const T* k = static_cast<const T*>(s.k) + kv_head * s.kv_head_stride;
  const T* v = static_cast<const T*>(s.v) + kv_head * s.kv_head_stride;
  Scratch scratch(s.keys + 2 * d);
  float* p = scratch.Take(s.keys);
  float* q = scratch.Take(d);
  float* out = scratch.Take(d);
  for (int64_t row = 0; row < s.queries; ++row) {
    const int64_t keys = s.keys - s.queries + row + 1, from = FirstKey(shape, keys - 1);
    for (int64_t h = 0; h < group; ++h) {
      const int64_t head = kv_head * group + h;
      const T* query = static_cast<const T*>(s.q) + row * s.q_stride + head * d;
      for (int64_t i = 0; i < d; ++i) q[i] = Load(query, i) * scale;
      float highest = -1e30f;
      for (int64_t key = from; key < keys; ++key) {
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < d; ++i) dot += q[i] * Load(k + key * s.k_stride, i);
        p[key] = dot;
        highest = dot > highest ? dot : highest;
      }
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t key = from; key < keys; ++key) {
        p[key] = Exp(p[key] - highest);
        sum += p[key];
      }
      for (int64_t i = 0; i < d; ++i) out[i] = 0;
      for (int64_t key = from; key < keys; ++key) {
#pragma omp simd
        for (int64_t i = 0; i < d; ++i) out[i] += p[key] * Load(v + key * s.k_stride, i);
      }
      StoreRow(static_cast<T*>(s.out) + row * s.out_stride + head * d, out, d, 1.0f / sum);
      if (s.log_sum != nullptr) s.log_sum[head * s.queries + row] = highest + std::log(sum);
    }
  }
}

struct AttentionTask {
  const AttentionSegment* segment;
  int64_t kv_head, first;
};

template <typename T>
void Attention(const AttentionShape& shape, const std::vector<AttentionSegment>& segments) {
  int64_t count = 0;
  for (const AttentionSegment& s : segments) count += shape.kv_heads * (s.queries <= kFewQueries ? 1 : (s.queries + kTile - 1) / kTile);
  AttentionTask* tasks = static_cast<AttentionTask*>(std::malloc(static_cast<size_t>(count) * sizeof(AttentionTask)));
  count = 0;
  for (const AttentionSegment& s : segments) {
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      if (s.queries <= kFewQueries) {
        tasks[count++] = {&s, head, -1};
        continue;
      }
      for (int64_t first = (s.queries - 1) / kTile * kTile; first >= 0; first -= kTile) tasks[count++] = {&s, head, first};
    }
  }
#pragma omp parallel for schedule(dynamic) if (count > 1)
  for (int64_t i = 0; i < count; ++i) {
    const AttentionTask& task = tasks[i];
    if (task.first < 0) {
      AttendFew<T>(shape, *task.segment, task.kv_head);
    } else {
      AttendTile<T>(shape, *task.segment, task.kv_head, task.first);
    }
  }
  std::free(tasks);
}

// One kv head of one segment: its dk, dv and the dq of its group of heads.
template <typename T>
inline void AttendBackward(const AttentionShape& shape, const AttentionSegment& s, int64_t kv_head) {
  const int64_t d = shape.head_dim, width = Padded(d), group = shape.heads / shape.kv_heads, offset = s.keys - s.queries;
  const int64_t padded = (s.queries + kTile - 1) / kTile * kTile;
  const float scale = shape.scale;
  Scratch scratch(group * padded * (3 * width + 1) + kTile * 6 * width + 4 * kTile * kTile);
  float* q = scratch.Take(group * padded * width);
  float* d_out = scratch.Take(group * padded * width);
  float* dq = scratch.Take(group * padded * width);
  float* k = scratch.Take(kTile * width);
  float* k_t = scratch.Take(kTile * width);
  float* v = scratch.Take(kTile * width);
  float* v_t = scratch.Take(kTile * width);
  float* dk = scratch.Take(kTile * width);
  float* dv = scratch.Take(kTile * width);
  float* p = scratch.Take(kTile * kTile);
  float* ds = scratch.Take(kTile * kTile);
  float* p_t = scratch.Take(kTile * kTile);
  float* ds_t = scratch.Take(kTile * kTile);
  float* delta = scratch.Take(group * padded);   // sum over d of out * d_out
  for (int64_t h = 0; h < group; ++h) {
    const int64_t column = (kv_head * group + h) * d;
    LoadRows(static_cast<const T*>(s.q) + column, s.q_stride, s.queries, padded, d, q + h * padded * width, width);
    LoadRows(static_cast<const T*>(s.d_out) + column, s.out_stride, s.queries, padded, d, d_out + h * padded * width, width);
    for (int64_t r = 0; r < s.queries; ++r) {
      const T* out = static_cast<const T*>(s.out) + r * s.out_stride + column;
      const float* gradient = d_out + (h * padded + r) * width;
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < d; ++i) sum += Load(out, i) * gradient[i];
      delta[h * padded + r] = sum;
    }
  }
  std::memset(dq, 0, static_cast<size_t>(group * padded * width) * 4);
  for (int64_t key = 0; key < s.keys; key += kTile) {
    const int64_t keys = Least(kTile, s.keys - key);
    LoadRows(static_cast<const T*>(s.k) + kv_head * s.kv_head_stride + key * s.k_stride, s.k_stride, keys, kTile, d, k, width);
    LoadRows(static_cast<const T*>(s.v) + kv_head * s.kv_head_stride + key * s.k_stride, s.k_stride, keys, kTile, d, v, width);
    Transpose(k, kTile, width, width, k_t, kTile);
    Transpose(v, kTile, width, width, v_t, kTile);
    std::memset(dk, 0, static_cast<size_t>(kTile * width) * 4);
    std::memset(dv, 0, static_cast<size_t>(kTile * width) * 4);
    const int64_t first_seen = key - offset > 0 ? (key - offset) / kTile * kTile : 0;   // earlier queries do not see this tile
    const int64_t end_seen = shape.window > 0 ? Least(s.queries, key + keys - 1 + shape.window - offset) : s.queries;   // nor later ones
    for (int64_t h = 0; h < group; ++h) {
      const float* log_sum = s.log_sum + (kv_head * group + h) * s.queries;
      for (int64_t first = first_seen; first < end_seen; first += kTile) {
        const int64_t rows = Least(kTile, s.queries - first), at = h * padded + first;
        MatMul<false>(rows, kTile, d, q + at * width, width, k_t, kTile, p, kTile);
        MatMul<false>(rows, kTile, d, d_out + at * width, width, v_t, kTile, ds, kTile);
        for (int64_t r = 0; r < rows; ++r) {
          const int seen = static_cast<int>(Least(keys, offset + first + r - key + 1)), from = FirstOf(shape, offset + first + r, key);
          const float log_total = log_sum[first + r], mean = delta[at + r];
#pragma omp simd
          for (int i = 0; i < kTile; ++i) {
            const float probability = (i < seen) & (i >= from) ? Exp(p[r * kTile + i] * scale - log_total) : 0.0f;
            p[r * kTile + i] = probability;
            ds[r * kTile + i] = probability * (ds[r * kTile + i] - mean) * scale;
          }
        }
        MatMul<true>(rows, width, kTile, ds, kTile, k, width, dq + at * width, width);
        Transpose(p, rows, kTile, kTile, p_t, kTile);
        Transpose(ds, rows, kTile, kTile, ds_t, kTile);
        MatMul<true>(kTile, width, rows, ds_t, kTile, q + at * width, width, dk, width);
        MatMul<true>(kTile, width, rows, p_t, kTile, d_out + at * width, width, dv, width);
      }
    }
    for (int64_t r = 0; r < keys; ++r) {
      StoreRow(static_cast<T*>(s.dk) + kv_head * s.kv_head_stride + (key + r) * s.k_stride, dk + r * width, d, 1.0f);
      StoreRow(static_cast<T*>(s.dv) + kv_head * s.kv_head_stride + (key + r) * s.k_stride, dv + r * width, d, 1.0f);
    }
  }
  for (int64_t h = 0; h < group; ++h) {
    for (int64_t r = 0; r < s.queries; ++r) {
      StoreRow(static_cast<T*>(s.dq) + r * s.q_stride + (kv_head * group + h) * d, dq + (h * padded + r) * width, d, 1.0f);
    }
  }
}

template <typename T>
void AttentionBackward(const AttentionShape& shape, const std::vector<AttentionSegment>& segments) {
  const int64_t tasks = static_cast<int64_t>(segments.size()) * shape.kv_heads;
  const AttentionSegment* segment = segments.data();
#pragma omp parallel for schedule(dynamic)
  for (int64_t task = 0; task < tasks; ++task) AttendBackward<T>(shape, segment[task / shape.kv_heads], task % shape.kv_heads);
}

}  // namespace
}  // namespace membank::MEMBANK_ISA
