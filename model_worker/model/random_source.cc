#include "model_worker/model/random_source.h"

#include <charconv>
#include <cmath>

#include "common/bank/block_init.h"
#include "common/base/status_macros.h"
#include "xxhash.h"

namespace membank {
namespace {

constexpr uint32_t kStream = 0x616e6368;  // "anch"

// Inverse of the normal distribution function (Peter Acklam), relative error 1.2e-9; p in (0, 0.5].
double LowerQuantile(double p) {
  if (p < 0.02425) {
    const double q = std::sqrt(-2 * std::log(p));
    return (((((-7.784894002430293e-03 * q - 3.223964580411365e-01) * q - 2.400758277161838e+00) * q - 2.549732539343734e+00) * q +
             4.374664141464968e+00) * q + 2.938163982698783e+00) /
           ((((7.784695709041462e-03 * q + 3.224671290700398e-01) * q + 2.445134137142996e+00) * q + 3.754408661907416e+00) * q + 1);
  }
  const double q = p - 0.5, r = q * q;
  return (((((-3.969683028665376e+01 * r + 2.209460984245205e+02) * r - 2.759285104469687e+02) * r + 1.383577518672690e+02) * r -
           3.066479806614716e+01) * r + 2.506628277459239e+00) * q /
         (((((-5.447609879822406e+01 * r + 1.615858368580409e+02) * r - 1.556989798598866e+02) * r + 6.680131188771972e+01) * r -
           1.328068155288572e+01) * r + 1);
}

// Normal, cut at three standard deviations.
double TruncatedNormal(uint32_t word) {
  constexpr double kBelow = 1.3498980316300933e-03;   // of a normal distribution lies below -3
  const double u = kBelow + (word + 0.5) * 0x1p-32 * (1 - 2 * kBelow);
  return u <= 0.5 ? LowerQuantile(u) : -LowerQuantile(1 - u);
}

bool Contains(const std::string& name, std::string_view part) { return name.find(part) != std::string::npos; }

// From "model.layers.12.mlp.down_proj.weight": 12.
int64_t LayerOf(const std::string& name) {
  const size_t at = name.find("layers.");
  int64_t layer = 0;
  if (at != std::string::npos) std::from_chars(name.data() + at + 7, name.data() + name.size(), layer);
  return layer;
}

double Deviation(const std::string& name, int64_t columns) {
  const double deviation = 1 / std::sqrt(static_cast<double>(columns));
  for (const char* residual : {"o_proj", "down_proj", "attention.dense.", "dense_4h_to_h", "attention.out_proj", "feed_forward.w3"})
    if (Contains(name, residual)) return deviation / std::sqrt(2.0 * (LayerOf(name) + 1));
  return deviation;
}

void Fill(const std::string& name, uint64_t seed, double deviation, int64_t count, float* values) {
  const uint32_t tensor = static_cast<uint32_t>(XXH3_64bits(name.data(), name.size()));
#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < count; first += 4) {
    const uint64_t counter = static_cast<uint64_t>(first) / 4;
    const auto words = Philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), tensor, kStream},
                                  {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
    for (int64_t i = first; i < std::min(first + 4, count); ++i) values[i] = static_cast<float>(deviation * TruncatedNormal(words[i - first]));
  }
}

// Tensors without memory behind them.
class ShapeSource : public RandomSource {
 public:
  explicit ShapeSource(const ModelConfig& config) : RandomSource(config, 0) {}
  absl::StatusOr<torch::Tensor> Read(const std::string&, const std::vector<int64_t>& shape, torch::Dtype dtype) const override {
    return torch::empty(shape, torch::TensorOptions(dtype).device(torch::kMeta));
  }
};

}  // namespace

absl::StatusOr<torch::Tensor> RandomSource::Read(const std::string& name, const std::vector<int64_t>& shape, torch::Dtype dtype) const {
  if (shape.size() < 2) {
    const double factor = 1 - config_.norm.offset;   // what is stored of a norm that multiplies by 1
    return torch::full(shape, Contains(name, "norm") && !Contains(name, "bias") ? factor : 0.0, torch::TensorOptions(dtype));
  }
  torch::Tensor values = torch::empty(shape, torch::kFloat);
  Fill(name, seed_, Deviation(name, shape[1]), values.numel(), values.data_ptr<float>());
  return values.to(dtype);
}

absl::StatusOr<uint64_t> CountParameters(const ModelConfig& config) {
  ASSIGN_OR_RETURN(const AnchorWeights weights, ReadAnchor(ShapeSource(config), torch::kFloat, torch::kMeta));
  uint64_t count = 0;
  for (const auto& [name, tensor] : weights.Named()) count += tensor.numel();
  return count;
}

}  // namespace membank
