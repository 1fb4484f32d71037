// Matrix products of any size, c = a b: bound by arithmetic. A panel of b (two vectors of columns) is laid out for the inner loop while the
// next one is on its way into the cache, then every row of a passes over it. bf16 is multiplied in pairs (vdpbf16ps) where the CPU can,
// else as fp32. Each element of c is a sum of fp32 sums over runs of k, in ascending k whatever the number of rows, columns and threads, and
// is rounded once.
#pragma once

#include <cstdlib>
#include <utility>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace membank::MEMBANK_ISA {
namespace {

constexpr int64_t kPanel = kPad;                       // columns of b at a time
constexpr int64_t kDepth = 1536;                       // of k at a time: a panel of this depth stays in the second-level cache
constexpr int kBlockRows = kLanes == 16 ? 12 : 6;      // rows of a at a time; with two vectors each they fill the registers

#ifdef __AVX512BF16__
template <typename T>
constexpr int kPair = sizeof(T) == 2 ? 2 : 1;          // steps of k that one instruction takes
#else
template <typename T>
constexpr int kPair = 1;
#endif

// Steps summed in registers from zero before they are added to the runs before: short for fp32, whose rounding the golden logits show.
template <typename T>
constexpr int64_t kRun = sizeof(T) == sizeof(float) ? 64 : 256;

using Lane = uint32_t;                                 // of a packed panel: an fp32 value, or two bf16 of neighbouring k

// sum += a * b over one step, a the same for all lanes
template <typename T>
inline void Multiply(Vector& sum, Lane a, const Lane* b) {
#ifdef __AVX512BF16__
  if constexpr (kPair<T> == 2) {
    sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)_mm512_loadu_si512(b));
    return;
  }
#endif
  sum += std::bit_cast<float>(a) * *reinterpret_cast<const Vector*>(b);
}

template <typename T>
inline Lane LoadLane(const T* a) {                     // one step's worth of a row
  if constexpr (kPair<T> == 2) {
    Lane lane;
    __builtin_memcpy(&lane, a, sizeof(lane));
    return lane;
  } else {
    return std::bit_cast<Lane>(Load(a, 0));
  }
}

template <typename T>
inline Lane LastLane(const T* a) {                     // where k is odd and steps are pairs
  if constexpr (kPair<T> == 2) return a->bits;
  return LoadLane(a);
}

// --- Packing -------------------------------------------------------------------------------------------------------------

#ifdef __AVX512F__
// to[j][i] = from[i][j] for 16 by 16 lanes; rows of `from` are `stride` bytes apart, of `to` kPanel lanes. In four rounds of pairs, as in a
// butterfly: round by round the rows that differ in one bit of their number exchange the lanes that differ in the same bit.
typedef uint32_t Lanes __attribute__((vector_size(64), aligned(2), may_alias));  // rows of bf16 begin at any element

template <int kBit, size_t... i>
inline void ExchangeLanes(Lanes& low, Lanes& high, std::index_sequence<i...>) {
  const Lanes a = low, b = high;
  low = __builtin_shufflevector(a, b, (i & kBit ? 16 + i - kBit : i)...);
  high = __builtin_shufflevector(a, b, (i & kBit ? 16 + i : i + kBit)...);
}

template <int kBit>
inline void ExchangeLanes(Lanes (&row)[16]) {
  for (int i = 0; i < 16; ++i) {
    if (!(i & kBit)) ExchangeLanes<kBit>(row[i], row[i + kBit], std::make_index_sequence<16>());
  }
}

inline void TransposeLanes(const uint8_t* from, int64_t stride, Lane* to) {
  Lanes row[16];
  for (int i = 0; i < 16; ++i) row[i] = *reinterpret_cast<const Lanes*>(from + i * stride);
  ExchangeLanes<1>(row);
  ExchangeLanes<2>(row);
  ExchangeLanes<4>(row);
  ExchangeLanes<8>(row);
  for (int i = 0; i < 16; ++i) *reinterpret_cast<Lanes*>(to + i * kPanel) = row[i];
}
#endif

// `b` stored [n, k]: `columns` rows of it, `k` elements each
template <typename T>
inline void PackTransposed(const T* b, int64_t stride, int64_t k, int64_t columns, Lane* to) {
  const int64_t steps = k / kPair<T>;
  int64_t first = 0;
#ifdef __AVX512F__
  if constexpr (sizeof(T) * kPair<T> == sizeof(Lane)) {
    if (columns == kPanel) {
      for (; first + 16 <= steps; first += 16) {
        const uint8_t* from = reinterpret_cast<const uint8_t*>(b + first * kPair<T>);
        const int64_t bytes = stride * static_cast<int64_t>(sizeof(T));
        TransposeLanes(from, bytes, to + first * kPanel);
        TransposeLanes(from + 16 * bytes, bytes, to + first * kPanel + 16);
      }
    }
  }
#endif
  for (int64_t c = 0; c < kPanel; ++c) {
    for (int64_t step = first; step < steps; ++step) {
      to[step * kPanel + c] = c < columns ? LoadLane(b + c * stride + step * kPair<T>) : 0;
    }
    if (k % kPair<T> != 0) to[steps * kPanel + c] = c < columns ? LastLane(b + c * stride + k - 1) : 0;
  }
}

// `b` stored [k, n]: `columns` columns of it
template <typename T>
inline void PackStraight(const T* b, int64_t stride, int64_t k, int64_t columns, Lane* to) {
  const int64_t steps = (k + kPair<T> - 1) / kPair<T>;
  for (int64_t step = 0; step < steps; ++step, to += kPanel) {
    const T* row = b + step * kPair<T> * stride;
#ifdef __AVX512BF16__
    if constexpr (kPair<T> == 2) {
      const bool both = 2 * step + 1 < k;
      const __mmask32 wanted = columns == kPanel ? ~__mmask32{0} : (__mmask32{1} << columns) - 1;
      const __m512i even = _mm512_maskz_loadu_epi16(wanted, row);
      const __m512i odd = _mm512_maskz_loadu_epi16(both ? wanted : 0, both ? row + stride : row);
      const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5, 36, 4, 35,
                                             3, 34, 2, 33, 1, 32, 0);
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(even, order, odd));
      _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi16(even, _mm512_add_epi16(order, _mm512_set1_epi16(16)), odd));
      continue;
    }
#endif
    for (int64_t c = 0; c < columns; ++c) to[c] = std::bit_cast<Lane>(Load(row, c));
    for (int64_t c = columns; c < kPanel; ++c) to[c] = 0;
  }
}

// --- The inner loop ------------------------------------------------------------------------------------------------------

struct Ahead {                                         // lines to bring into the cache: one per step
  const uint8_t* next;
  int64_t stride;
};

// sums [R, kPanel] += a [R, k] * panel, run by run
template <typename T, int R>
inline void MultiplyBlock(int64_t k, const T* a, int64_t stride, const Lane* panel, Ahead& ahead, float* sums) {
  const int64_t steps = k / kPair<T>;
  const uint8_t* next = ahead.next;
  int64_t step = 0;
  do {
    Vector sum[R][2];
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < 2; ++j) sum[r][j] = Vector{};
    }
    const int64_t end = step + kRun<T> < steps ? step + kRun<T> : steps;
    for (; step < end; ++step) {
      __builtin_prefetch(next, 0, 2);
      next += ahead.stride;
      for (int r = 0; r < R; ++r) {
        const Lane x = LoadLane(a + r * stride);
        for (int j = 0; j < 2; ++j) Multiply<T>(sum[r][j], x, panel + j * kLanes);
      }
      a += kPair<T>;
      panel += kPanel;
    }
    if (step == steps && k % kPair<T> != 0) {
      for (int r = 0; r < R; ++r) {
        for (int j = 0; j < 2; ++j) Multiply<T>(sum[r][j], LastLane(a + r * stride), panel + j * kLanes);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int j = 0; j < 2; ++j) *reinterpret_cast<Vector*>(sums + r * kPanel + j * kLanes) += sum[r][j];
    }
  } while (step < steps);
  ahead.next = next;
}

template <typename T, int R = kBlockRows>
inline void MultiplyRows(int64_t rows, int64_t k, const T* a, int64_t stride, const Lane* panel, Ahead& ahead, float* sums) {
  if (rows == R) return MultiplyBlock<T, R>(k, a, stride, panel, ahead, sums);
  if constexpr (R > 1) MultiplyRows<T, R - 1>(rows, k, a, stride, panel, ahead, sums);
}

// --- Panels --------------------------------------------------------------------------------------------------------------

template <typename T>
inline int64_t Steps(int64_t k) {
  return (k + kPair<T> - 1) / kPair<T>;
}

template <typename T>
inline const T* PanelOf(const Product& p, int64_t depth, int64_t column) {
  return static_cast<const T*>(p.b) + (p.b_layout == ProductLayout::kTransposed ? column * p.b_stride + depth : depth * p.b_stride + column);
}

template <typename T>
inline void PackPanel(const Product& p, int64_t depth, int64_t k, int64_t column, Lane* to) {
  const int64_t columns = p.n - column < kPanel ? p.n - column : kPanel;
  if (p.b_layout == ProductLayout::kTransposed) {
    PackTransposed(PanelOf<T>(p, depth, column), p.b_stride, k, columns, to);
  } else {
    PackStraight(PanelOf<T>(p, depth, column), p.b_stride, k, columns, to);
  }
}

// `k` steps of depth of the panel at `column`, laid out; `ahead` is where the panel or the depth after it lies.
template <typename T>
inline const Lane* LaidOut(const Product& p, int64_t depth, int64_t k, int64_t column, Lane* scratch, Ahead* ahead) {
  if (p.b_layout == ProductLayout::kPacked) {
    const Lane* panel = static_cast<const Lane*>(p.b) + column * Steps<T>(p.k) + depth / kPair<T> * kPanel;
    *ahead = {reinterpret_cast<const uint8_t*>(panel + Steps<T>(k) * kPanel), 64};
    return panel;
  }
  PackPanel<T>(p, depth, k, column, scratch);
  const bool right = column + kPanel < p.n, below = depth + k < p.k;
  const int64_t line = p.b_layout == ProductLayout::kTransposed ? 64 : p.b_stride * static_cast<int64_t>(sizeof(T));
  *ahead = {reinterpret_cast<const uint8_t*>(PanelOf<T>(p, below ? depth + k : 0, below || !right ? column : column + kPanel)), line};
  return scratch;
}

template <typename T>
inline void WriteRows(const Product& p, int64_t column, const float* sums) {
  const int64_t columns = p.n - column < kPanel ? p.n - column : kPanel;
  for (int64_t r = 0; r < p.m; ++r, sums += kPanel) {
    if (p.out == ProductOut::kAddF32) {
      float* c = static_cast<float*>(p.c) + r * p.c_stride + column;
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) c[i] += sums[i];
    } else {
      T* c = static_cast<T*>(p.c) + r * p.c_stride + column;
      const bool add = p.out == ProductOut::kAdd;
#pragma omp simd
      for (int64_t i = 0; i < columns; ++i) Store(c, i, add ? Load(c, i) + sums[i] : sums[i]);
    }
  }
}

// Panels from `first` to `last`, one step of depth after the other, so that the step's part of a stays in the cache for all of them.
template <typename T>
inline void MultiplyPanels(const Product& p, const T* a, int64_t a_stride, int64_t first, int64_t last, Lane* panel_scratch, float* sums) {
  const int64_t block_count = (p.m + kBlockRows - 1) / kBlockRows;
  __builtin_memset(sums, 0, static_cast<size_t>((last - first) * p.m * kPanel) * sizeof(float));
  for (int64_t depth = 0; depth < p.k; depth += kDepth) {
    const int64_t k = p.k - depth < kDepth ? p.k - depth : kDepth;
    for (int64_t i = first; i < last; ++i) {
      Ahead ahead;
      const Lane* panel = LaidOut<T>(p, depth, k, i * kPanel, panel_scratch, &ahead);
      float* c = sums + (i - first) * p.m * kPanel;
      for (int64_t block = 0; block < block_count; ++block) {
        const int64_t row = block * p.m / block_count, rows = (block + 1) * p.m / block_count - row;
        MultiplyRows<T>(rows, k, a + row * a_stride + depth, a_stride, panel, ahead, c + row * kPanel);
      }
    }
  }
  for (int64_t i = first; i < last; ++i) WriteRows<T>(p, i * kPanel, sums + (i - first) * p.m * kPanel);
}

template <typename T>
void MatrixProduct(const Product& p) {
  if (p.m == 0 || p.n == 0) return;
  const int64_t panels = (p.n + kPanel - 1) / kPanel;
  const int64_t together = p.k > kDepth ? 3 : 1, tasks = (panels + together - 1) / together;
  T* turned = nullptr;                                 // a in row-major order
  if (p.a_transposed) turned = static_cast<T*>(std::malloc(static_cast<size_t>(p.m * p.k) * sizeof(T)));
  const T* a = p.a_transposed ? turned : static_cast<const T*>(p.a);
  const int64_t a_stride = p.a_transposed ? p.k : p.a_stride;
#pragma omp parallel if (p.m * p.n * p.k > 65536)
  {
    if (p.a_transposed) {
#pragma omp for schedule(static)
      for (int64_t row = 0; row < p.m; ++row) {
        for (int64_t i = 0; i < p.k; ++i) turned[row * p.k + i] = static_cast<const T*>(p.a)[i * p.a_stride + row];
      }
    }
    const int64_t panel_lanes = Steps<T>(p.k < kDepth ? p.k : kDepth) * kPanel;
    Lane* panel = static_cast<Lane*>(std::aligned_alloc(64, static_cast<size_t>(panel_lanes + together * p.m * kPanel) * sizeof(Lane)));
    float* sums = reinterpret_cast<float*>(panel + panel_lanes);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t first = task * together, last = first + together < panels ? first + together : panels;
      MultiplyPanels<T>(p, a, a_stride, first, last, panel, sums);
    }
    std::free(panel);
  }
  std::free(turned);
}

template <typename T>
int64_t PackedBytes(int64_t n, int64_t k) {
  return (n + kPanel - 1) / kPanel * kPanel * Steps<T>(k) * static_cast<int64_t>(sizeof(Lane));
}

template <typename T>
void Pack(const Product& p, void* packed) {
  const int64_t panels = (p.n + kPanel - 1) / kPanel;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < panels; ++i) PackPanel<T>(p, 0, p.k, i * kPanel, static_cast<Lane*>(packed) + i * kPanel * Steps<T>(p.k));
}

}  // namespace
}  // namespace membank::MEMBANK_ISA
