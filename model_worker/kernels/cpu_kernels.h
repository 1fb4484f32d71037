// The loops of the model that are not matrix products, for CPUs, on raw pointers: no Torch here. Each table is compiled twice, for
// x86-64-v3 (AVX2) and for AVX-512 with bf16, and chosen once at run time. Arithmetic is fp32 whatever the element type; every
// result is rounded once. OpenMP threads of the process (at::set_num_threads sets them). Any thread; nothing fails: callers check shapes.
// ops.h wraps these for tensors; reference.h says the same in plain ATen and is what the tests compare with.
#pragma once

#include <cstdint>
#include <vector>

namespace membank {

// One run of query rows that continues a run of keys: query i sees keys [0, keys - queries + i]. Pointers are to elements of the table's
// type; the heads of a row lie side by side in q, out and their gradients.
struct AttentionSegment {
  const void* q = nullptr;           // [queries, heads * dh], row stride q_stride
  const void* k = nullptr;           // [keys, dh] per kv head: row stride k_stride, head stride kv_head_stride
  const void* v = nullptr;
  void* out = nullptr;               // [queries, heads * dh], row stride out_stride
  float* log_sum = nullptr;          // [heads, queries]: log of the softmax denominators; null when no backward follows
  int64_t queries = 0, keys = 0;
  int64_t q_stride = 0, k_stride = 0, kv_head_stride = 0, out_stride = 0;
  // Backward only: d_out as `out`; dq as `q`; dk and dv as `k` (written, not added to).
  const void* d_out = nullptr;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
};

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;                   // of the scores
  int64_t window = 0;                // a query sees the last `window` keys, its own among them; 0 = all
};

// y = (x - mean) * inv_rms * (offset + weight) + bias over rows of d; the mean is 0 unless `center` (LayerNorm).
struct NormShape {
  int64_t rows = 0, d = 0;
  float epsilon = 0, offset = 0;
  bool center = false;
};

enum class Activation : uint8_t { kSilu = 0, kGelu = 1, kGeluTanh = 2 };   // kGelu: with erf

// A few rows that share a block's layer slice: out[row] += W3t^T (act(W1 x[row]) * (W2 x[row])).
struct MemoryRows {
  const void* gate_up = nullptr;     // [2r, d]
  const void* down = nullptr;        // [r, d]
  int64_t begin = 0, end = 0;        // rows of x and out
};

// c [m, n] from a [m, k] b [k, n]; strides are of rows as stored.
enum class ProductOut : uint8_t { kStore, kAdd, kAddF32 };   // c = ; c += ; c fp32, +=
enum class ProductLayout : uint8_t {
  kStraight,     // [k, n]
  kTransposed,   // [n, k]
  kPacked,       // what `pack` made of one of these for the same table; strides mean nothing
};
struct Product {
  int64_t m = 0, n = 0, k = 0;
  const void* a = nullptr;
  int64_t a_stride = 0;
  bool a_transposed = false;         // stored [k, m]
  const void* b = nullptr;
  int64_t b_stride = 0;
  ProductLayout b_layout = ProductLayout::kStraight;
  void* c = nullptr;
  int64_t c_stride = 0;
  ProductOut out = ProductOut::kStore;
};

struct CpuKernels {
  const char* name;

  // sum = x + addend (addend null: sum is not written and x is used); y = norm(sum). x, addend, sum, y [rows, d]; bias [d] may be null;
  // mean [rows] is written when the norm centers.
  void (*norm)(const NormShape& shape, const void* x, const void* addend, void* sum, const void* weight, const void* bias, void* y,
               float* mean, float* inv_rms);
  // dx = gradient of y through the norm + residual (null: none). d_weight, d_bias [d] fp32 are added to when not null.
  void (*norm_backward)(const NormShape& shape, const void* dy, const void* x, const void* weight, const float* mean, const float* inv_rms,
                        const void* residual, void* dx, float* d_weight, float* d_bias);
  // Rotates the first `turned` elements of the first `heads` heads of each row in place. cos, sin [positions, turned/2] fp32; inverse turns
  // back (the gradient).
  void (*rope)(int64_t rows, int64_t heads, int64_t head_dim, int64_t turned, int64_t stride, void* x, const int64_t* positions,
               const float* cos, const float* sin, bool inverse);
  // in [rows, 2 * inner] (gate | up) when gated, else [rows, inner]; h [rows, inner] = act(gate) * up, or act(in).
  void (*activate)(Activation activation, bool gated, int64_t rows, int64_t inner, const void* in, void* h);
  // d_in from dh; h (not null) is computed again.
  void (*activate_backward)(Activation activation, bool gated, int64_t rows, int64_t inner, const void* in, const void* dh, void* d_in, void* h);
  void (*attention)(const AttentionShape& shape, const std::vector<AttentionSegment>& segments);
  void (*attention_backward)(const AttentionShape& shape, const std::vector<AttentionSegment>& segments);
  // y [rows, out] = x [rows, in] w^T, w [out, in]; for few rows (memory-bound).
  void (*linear)(int64_t rows, int64_t out, int64_t in, const void* x, const void* w, void* y);
  void (*memory_ffn)(Activation activation, int64_t width, int64_t d, const void* x, void* out, const std::vector<MemoryRows>& groups);
  // losses[row] = -log p(target), log_sums[row] = log(sum(exp(logits))); both 0 where target is -100. When `gradient`, logits [rows, V] become
  // scale * d(losses + z_loss * log_sums^2) / d logits.
  void (*cross_entropy)(int64_t rows, int64_t vocabulary, int64_t stride, void* logits, const int64_t* targets, float scale, float z_loss,
                        bool gradient, float* losses, float* log_sums);
  void (*accumulate)(int64_t n, const void* source, float* sum);   // sum += source
  void (*product)(const Product& product);
  // Lays out b (and n, k) of `product` once for many products. packed_bytes(n, k) bytes, aligned to 64.
  void (*pack)(const Product& product, void* packed);
  int64_t (*packed_bytes)(int64_t n, int64_t k);
};

enum class KernelType : uint8_t { kF32, kBF16 };
enum class KernelIsa : uint8_t { kAvx2, kAvx512 };

bool Supported(KernelIsa isa);
const CpuKernels& Kernels(KernelType type, KernelIsa isa);   // isa must be supported
const CpuKernels& Kernels(KernelType type);                  // the best that this CPU has

}  // namespace membank
