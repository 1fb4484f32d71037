// The operations of ops.h in plain ATen with autograd: what runs on devices without a kernel of ours, and the oracle of the tests.
#pragma once

#include "model_worker/kernels/ops.h"

namespace membank::reference {

torch::Tensor Norm(const NormForm& form, const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias);
torch::Tensor Rope(const torch::Tensor& x, int64_t heads, int64_t head_dim, const torch::Tensor& positions, const RopeTable& table);
torch::Tensor Activate(const FfnForm& form, const torch::Tensor& in);
torch::Tensor Attention(const torch::Tensor& qkv, const Heads& shape, const std::vector<AttentionRows>& segments);
torch::Tensor CrossEntropy(const torch::Tensor& logits, const torch::Tensor& targets);   // per row, 0 where the target is -100
// act(x w1^T) * (x w2^T) through w3t [r, d]
torch::Tensor MemoryFfn(const torch::Tensor& x, const torch::Tensor& w1, const torch::Tensor& w2, const torch::Tensor& w3t,
                        Activation activation = Activation::kSilu);

}  // namespace membank::reference
