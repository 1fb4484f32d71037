// Golden tensors of tests/golden/model (make_golden.py) as Torch tensors.
#pragma once

#include <torch/torch.h>

#include <cstdlib>
#include <map>
#include <string>

#include "common/tensors/safetensors.h"
#include "gtest/gtest.h"

namespace membank {

inline std::string GoldenPath(const std::string& name) {
  const char* source = std::getenv("MEMBANK_SOURCE_DIR");
  return std::string(source != nullptr ? source : ".") + "/tests/golden/model/" + name;
}

inline std::map<std::string, torch::Tensor> ReadGolden(const std::string& name) {
  std::map<std::string, torch::Tensor> tensors;
  auto file = SafetensorsFile::Open(GoldenPath(name));
  EXPECT_TRUE(file.ok()) << file.status().ToString();
  if (!file.ok()) return tensors;
  for (const auto& [key, view] : (*file)->tensors()) {
    torch::Tensor tensor = torch::empty(view.shape, view.dtype == DType::kI64 ? torch::kLong : torch::kFloat);
    std::memcpy(tensor.data_ptr(), view.bytes.data(), view.bytes.size());
    tensors[key] = tensor;
  }
  return tensors;
}

inline double MaxAbs(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kDouble) - b.to(torch::kDouble)).abs().max().item<double>();
}

inline double Rms(const torch::Tensor& a, const torch::Tensor& b) {
  return (a.to(torch::kDouble) - b.to(torch::kDouble)).pow(2).mean().sqrt().item<double>();
}

}  // namespace membank
