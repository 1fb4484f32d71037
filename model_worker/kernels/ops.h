// The model's operations on tensors, forward and backward apart, outside autograd. On the CPU (fp32, bf16) they run the loops of
// cpu_kernels.h; elsewhere the plain ATen of reference.h. All tensors contiguous unless a comment says otherwise; shapes are the caller's
// promise (checked in debug). N rows, d hidden, h heads, g key-value heads, dh head size. One thread at a time per call; any thread.
#pragma once

#include <torch/torch.h>

#include <vector>

#include "model_worker/kernels/cpu_kernels.h"

namespace membank {

// RMS norm, or LayerNorm when it centers: (x - mean) * inv_rms * (offset + weight) + bias.
struct NormForm {
  double epsilon = 0, offset = 0;
  bool center = false;
};
struct Normed {
  torch::Tensor sum;            // x + addend [N, d]; x itself without an addend
  torch::Tensor y;              // norm(sum) [N, d]
  torch::Tensor mean, inv_rms;  // [N] fp32; mean undefined unless the norm centers
};
Normed Norm(const NormForm& form, const torch::Tensor& x, const torch::Tensor& addend, const torch::Tensor& weight, const torch::Tensor& bias);
// Gradient to x = normed.sum, plus `residual` when defined. d_weight and d_bias ([d] fp32) are added to when defined.
torch::Tensor NormBackward(const NormForm& form, const torch::Tensor& dy, const Normed& normed, const torch::Tensor& weight,
                           const torch::Tensor& residual, torch::Tensor d_weight, torch::Tensor d_bias);

// cos and sin of every position times every inverse frequency [P, m], fp32, rounded to `dtype` as transformers does.
struct RopeTable {
  torch::Tensor cos, sin;
};
RopeTable MakeRopeTable(int64_t positions, const torch::Tensor& inverse_frequencies, torch::Dtype dtype, torch::Device device);
// In place on the first 2m elements of the first `heads` heads of x [N, any >= heads * dh]; positions [N] int64.
void Rope(torch::Tensor& x, int64_t heads, int64_t head_dim, const torch::Tensor& positions, const RopeTable& table, bool inverse);

// The middle of an FFN: act(gate) * up of [N, 2m] (gate | up) when gated, act of [N, m] when not; [N, m].
struct FfnForm {
  Activation activation = Activation::kSilu;
  bool gated = true;
};
torch::Tensor Activate(const FfnForm& form, const torch::Tensor& in);
// d_in as `in`; h [N, m] is filled again when `want_h`.
struct ActivationGradient {
  torch::Tensor d_in, h;
};
ActivationGradient ActivateBackward(const FfnForm& form, const torch::Tensor& in, const torch::Tensor& dh, bool want_h);

struct Heads {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  double scale = 0;         // of the scores; 0: 1 / sqrt(dh)
  int64_t window = 0;       // a row sees its own key and the window - 1 before it; 0: all before it

  double Scale() const;
};
// Rows [begin, end) attend causally to `keys`/`values` [g, capacity, dh] up to `length` (a cache that already holds these rows), or, when
// undefined, to their own keys and values in qkv.
struct AttentionRows {
  int64_t begin = 0, end = 0;
  torch::Tensor keys, values;
  int64_t length = 0;
};
// Copies the rows' keys and values from qkv to the ends of the segments' caches: positions [length - rows, length).
void AppendKeysAndValues(const torch::Tensor& qkv, const Heads& shape, const std::vector<AttentionRows>& segments);
// qkv [N, (h + 2g) * dh] -> [N, h * dh]. log_sums (one [h, rows] fp32 per segment) are filled when not null.
torch::Tensor Attention(const torch::Tensor& qkv, const Heads& shape, const std::vector<AttentionRows>& segments,
                        std::vector<torch::Tensor>* log_sums);
// Gradient to qkv; segments without caches.
torch::Tensor AttentionBackward(const torch::Tensor& qkv, const torch::Tensor& out, const torch::Tensor& d_out, const Heads& shape,
                                const std::vector<AttentionRows>& segments, const std::vector<torch::Tensor>& log_sums);

// Losses and logits' log-sums [n] fp32 of targets [n] (-100: 0). With `gradient`, logits [n, V] (rows may be strided) turn into
// scale * d(losses + z_loss * log_sums^2) / d logits in place.
struct TokenLosses {
  torch::Tensor losses, log_sums;
};
TokenLosses CrossEntropy(torch::Tensor& logits, const torch::Tensor& targets, double scale, double z_loss, bool gradient);

// sum += source, where sum may be fp32 beside a bf16 source.
void Accumulate(torch::Tensor sum, const torch::Tensor& source);

}  // namespace membank
