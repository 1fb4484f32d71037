// y = x W^T for a handful of rows, and the memory FFN for them: bound by the bytes of W, which are read once.
#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace membank::MEMBANK_ISA {
namespace {

constexpr int64_t kRowBlock = 4;   // rows of x at a time; rows of W at a time

// sum[o][m] = dot(w + o * in, x + m * in), o < O, m < M
template <typename T, int O, int M>
inline void Dots(int64_t in, const T* w, const T* x, float (&sum)[O][M]) {
  int64_t i = 0;
#ifdef __AVX512BF16__
  if constexpr (sizeof(T) == 2) {
    __m512 acc[O][M];
    for (int o = 0; o < O; ++o) {
      for (int m = 0; m < M; ++m) acc[o][m] = _mm512_setzero_ps();
    }
    for (; i + 32 <= in; i += 32) {
      __m512bh b[M];
      for (int m = 0; m < M; ++m) b[m] = (__m512bh)_mm512_loadu_si512(x + m * in + i);
      for (int o = 0; o < O; ++o) {
        const __m512bh a = (__m512bh)_mm512_loadu_si512(w + o * in + i);
        for (int m = 0; m < M; ++m) acc[o][m] = _mm512_dpbf16_ps(acc[o][m], a, b[m]);
      }
    }
    for (int o = 0; o < O; ++o) {
      for (int m = 0; m < M; ++m) {
        float total = 0;   // not _mm512_reduce_add_ps: GCC 12's version warns about its own undefined operand
        for (int l = 0; l < 16; ++l) total += acc[o][m][l];
        sum[o][m] = total;
      }
    }
  } else
#endif
  {
    Vector acc[O][M];
    for (int o = 0; o < O; ++o) {
      for (int m = 0; m < M; ++m) acc[o][m] = Vector{};
    }
    for (; i + kLanes <= in; i += kLanes) {
      Vector b[M];
      for (int m = 0; m < M; ++m) {
        for (int l = 0; l < kLanes; ++l) b[m][l] = Load(x + m * in + i, l);
      }
      for (int o = 0; o < O; ++o) {
        Vector a;
        for (int l = 0; l < kLanes; ++l) a[l] = Load(w + o * in + i, l);
        for (int m = 0; m < M; ++m) acc[o][m] += a * b[m];
      }
    }
    for (int o = 0; o < O; ++o) {
      for (int m = 0; m < M; ++m) {
        float total = 0;
        for (int l = 0; l < kLanes; ++l) total += acc[o][m][l];
        sum[o][m] = total;
      }
    }
  }
  for (; i < in; ++i) {
    for (int o = 0; o < O; ++o) {
      for (int m = 0; m < M; ++m) sum[o][m] += Load(w + o * in, i) * Load(x + m * in, i);
    }
  }
}

template <typename T, int M>
inline void LinearBlock(int64_t first, int64_t last, int64_t out, int64_t in, const T* x, const T* w, T* y) {
  int64_t o = first;
  for (; o + kRowBlock <= last; o += kRowBlock) {
    float sum[kRowBlock][M];
    Dots<T, kRowBlock, M>(in, w + o * in, x, sum);
    for (int i = 0; i < kRowBlock; ++i) {
      for (int m = 0; m < M; ++m) Store(y + m * out, o + i, sum[i][m]);
    }
  }
  for (; o < last; ++o) {
    float sum[1][M];
    Dots<T, 1, M>(in, w + o * in, x, sum);
    for (int m = 0; m < M; ++m) Store(y + m * out, o, sum[0][m]);
  }
}

template <typename T>
void LinearFewRows(int64_t rows, int64_t out, int64_t in, const void* x_, const void* w_, void* y_) {
  const T* w = static_cast<const T*>(w_);
  const int64_t chunk = 32 * kRowBlock;   // of W's rows: 144 KB at d 576 in bf16, so it stays in the second-level cache for all rows of x
#pragma omp parallel for schedule(static) if (out * in > 16384)
  for (int64_t first = 0; first < out; first += chunk) {
    const int64_t last = first + chunk < out ? first + chunk : out;
    int64_t row = 0;
    while (row < rows) {
      const T* x = static_cast<const T*>(x_) + row * in;
      T* y = static_cast<T*>(y_) + row * out;
      const int64_t left = rows - row;
      if (left >= 4) {
        LinearBlock<T, 4>(first, last, out, in, x, w, y);
        row += 4;
      } else if (left >= 2) {
        LinearBlock<T, 2>(first, last, out, in, x, w, y);
        row += 2;
      } else {
        LinearBlock<T, 1>(first, last, out, in, x, w, y);
        row += 1;
      }
    }
  }
}

// Two phases with a barrier between: units of the hidden layer, then columns of the output, so that one row still uses every thread.
template <typename T, Activation kActivation>
void MemoryFfnRowsOf(int64_t width, int64_t d, const void* x_, void* out_, const std::vector<MemoryRows>& groups) {
  constexpr int64_t kUnits = 16, kColumns = 64;
  const MemoryRows* group = groups.data();
  const int64_t count = static_cast<int64_t>(groups.size());
  int64_t rows = 0;
  for (int64_t g = 0; g < count; ++g) rows += group[g].end - group[g].begin;
  if (rows == 0) return;
  float* hidden = static_cast<float*>(std::malloc(static_cast<size_t>(rows * width) * sizeof(float)));
  int64_t* offset = static_cast<int64_t*>(std::malloc(static_cast<size_t>(count) * sizeof(int64_t)));   // a group's first row in `hidden`
  rows = 0;
  for (int64_t g = 0; g < count; ++g) {
    offset[g] = rows;
    rows += group[g].end - group[g].begin;
  }
  const int64_t unit_chunks = (width + kUnits - 1) / kUnits, column_chunks = (d + kColumns - 1) / kColumns;
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t task = 0; task < count * unit_chunks; ++task) {
      const int64_t g = task / unit_chunks, first = task % unit_chunks * kUnits;
      const int64_t last = first + kUnits < width ? first + kUnits : width;
      const T* gate = static_cast<const T*>(group[g].gate_up);
      const T* up = gate + width * d;
      for (int64_t row = group[g].begin; row < group[g].end; ++row) {
        const T* x = static_cast<const T*>(x_) + row * d;
        float* h = hidden + (offset[g] + row - group[g].begin) * width;
        for (int64_t unit = first; unit < last; ++unit) {
          float a[1][1], b[1][1];
          Dots<T, 1, 1>(d, gate + unit * d, x, a);
          Dots<T, 1, 1>(d, up + unit * d, x, b);
          h[unit] = At<kActivation>(a[0][0]).value * b[0][0];
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t task = 0; task < count * column_chunks; ++task) {
      const int64_t g = task / column_chunks, first = task % column_chunks * kColumns;
      const int64_t columns = first + kColumns < d ? kColumns : d - first;
      const T* down = static_cast<const T*>(group[g].down) + first;
      for (int64_t row = group[g].begin; row < group[g].end; ++row) {
        const float* h = hidden + (offset[g] + row - group[g].begin) * width;
        float sum[kColumns] = {};
        for (int64_t unit = 0; unit < width; ++unit) {
#pragma omp simd
          for (int64_t i = 0; i < columns; ++i) sum[i] += h[unit] * Load(down + unit * d, i);
        }
        T* out = static_cast<T*>(out_) + row * d + first;
#pragma omp simd
        for (int64_t i = 0; i < columns; ++i) Store(out, i, Load(out, i) + sum[i]);
      }
    }
  }
  std::free(offset);
  std::free(hidden);
}

template <typename T>
void MemoryFfnRows(Activation activation, int64_t width, int64_t d, const void* x, void* out, const std::vector<MemoryRows>& groups) {
  switch (activation) {
    case Activation::kSilu: return MemoryFfnRowsOf<T, Activation::kSilu>(width, d, x, out, groups);
    case Activation::kGelu: return MemoryFfnRowsOf<T, Activation::kGelu>(width, d, x, out, groups);
    case Activation::kGeluTanh: return MemoryFfnRowsOf<T, Activation::kGeluTanh>(width, d, x, out, groups);
  }
}

}  // namespace
}  // namespace membank::MEMBANK_ISA
