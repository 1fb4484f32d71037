// What the tests of the memory kernels share: blocks in use, and how close a result must be.
#pragma once

#include <torch/torch.h>

#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "model_worker/kernels/memory_rows.h"

namespace membank {

// A distinct block of one level and the rows that use it.
struct Use {
  torch::Tensor block;
  int64_t width = 0;
  MemoryRowRanges rows;
  torch::Tensor gradient;
};

// How far a result in `dtype` may be off, as a whole and relative to the exact one: rounding of sums, rounding of factors.
inline double Tolerance(torch::Dtype dtype) { return dtype == torch::kFloat ? 2e-6 : 1e-2; }

inline void ExpectClose(const torch::Tensor& actual, const torch::Tensor& expected, double tolerance, const char* what) {
  const torch::Tensor difference = actual.detach().to(torch::kDouble) - expected.detach().to(torch::kDouble);
  EXPECT_LE(difference.norm().item<double>(), tolerance * expected.detach().norm().item<double>()) << what;
}

inline std::string DTypeText(const testing::TestParamInfo<torch::Dtype>& info) { return info.param == torch::kFloat ? "F32" : "BF16"; }

// d loss / d block at `elements`, the gradient against central differences. fp32.
inline void ExpectFiniteDifferences(torch::Tensor& block, const torch::Tensor& gradient, const std::vector<int64_t>& elements,
                                    const std::function<double()>& loss) {
  constexpr float kStep = 1e-2f;
  for (const int64_t i : elements) {
    float& value = block.data_ptr<float>()[i];
    const float before = value;
    value = before + kStep;
    const double above = loss();
    value = before - kStep;
    const double below = loss();
    value = before;
    EXPECT_NEAR(gradient[i].item<double>(), (above - below) / (2 * kStep), 5e-3) << "element " << i;
  }
}

}  // namespace membank
