#include "model_worker/train/anchor_optimizer.h"

#include <ATen/ops/_fused_adamw.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "common/base/status_macros.h"
#include "common/tensors/safetensors.h"

namespace membank {
namespace {

constexpr char kFile[] = "anchor_optimizer";   // of rank 0; the others append their number

}  // namespace

AnchorOptimizer::AnchorOptimizer(AnchorParameters* parameters, double beta1, double beta2, double epsilon, bool decay_vectors)
    : steps_(torch::zeros({}, torch::kFloat)), beta1_(beta1), beta2_(beta2), epsilon_(epsilon), decay_vectors_(decay_vectors) {
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters->size(); ++i) {
    if (!parameters->owned(i)) continue;
    State state;
    state.name = parameters->name(i);
    state.parameter = parameters->value(i);
    state.gradient = parameters->gradient(i);
    state.weights = state.parameter.scalar_type() == torch::kFloat ? state.parameter.detach() : state.parameter.detach().to(torch::kFloat);
    state.first = torch::zeros_like(state.weights);
    state.second = torch::zeros_like(state.weights);
    states_.push_back(std::move(state));
  }
}

void AnchorOptimizer::Step(double scale, double learning_rate, double weight_decay) {
  torch::NoGradGuard no_grad;
  steps_.add_(1);
  Update(/*vectors=*/false, scale, learning_rate, weight_decay);
  Update(/*vectors=*/true, scale, learning_rate, decay_vectors_ ? weight_decay : 0);
  for (State& state : states_)
    if (state.parameter.scalar_type() != torch::kFloat) state.parameter.copy_(state.weights);
}

void AnchorOptimizer::Update(bool vectors, double scale, double learning_rate, double weight_decay) {
  std::vector<torch::Tensor> weights, gradients, first, second;
  for (State& state : states_) {
    if ((state.parameter.dim() < 2) != vectors) continue;
    weights.push_back(state.weights);
    gradients.push_back(state.gradient);
    if (scale != 1.0) gradients.back().mul_(scale);
    first.push_back(state.first);
    second.push_back(state.second);
  }
  if (weights.empty()) return;
  const std::vector<torch::Tensor> steps(weights.size(), steps_);
  at::_fused_adamw_(weights, gradients, first, second, /*max_exp_avg_sqs=*/{}, steps, learning_rate, beta1_, beta2_, weight_decay, epsilon_,
                    /*amsgrad=*/false, /*maximize=*/false);
}

std::vector<std::pair<std::string, torch::Tensor>> AnchorOptimizer::Tensors() const {
  std::vector<std::pair<std::string, torch::Tensor>> tensors = {{"steps", steps_.reshape({1})}};
  for (const State& state : states_) {
    tensors.emplace_back(state.name + ".first", state.first);
    tensors.emplace_back(state.name + ".second", state.second);
    if (state.parameter.scalar_type() != torch::kFloat) tensors.emplace_back(state.name + ".master", state.weights);
  }
  return tensors;
}

absl::Status AnchorOptimizer::Save(const std::string& directory, uint32_t rank) const {
  std::vector<TensorView> views;
  const auto tensors = Tensors();
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.is_contiguous()) return Internal("optimizer state {} is not contiguous", name);
    views.push_back({name, DType::kF32, tensor.sizes().vec(), {static_cast<const uint8_t*>(tensor.data_ptr()), tensor.nbytes()}});
  }
  return WriteSafetensors(fmt::format("{}/{}{}.safetensors", directory, kFile, rank == 0 ? "" : fmt::format("-{}", rank)), views, {});
}

absl::Status AnchorOptimizer::Load(const std::string& directory) {
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (entry.path().filename().string().rfind(kFile, 0) != 0) continue;
    ASSIGN_OR_RETURN(files.emplace_back(), SafetensorsFile::Open(entry.path().string()));
  }
  for (auto& [name, tensor] : Tensors()) {
    absl::StatusOr<TensorView> view = NotFound("{} has no {}*.safetensors with {}", directory, kFile, name);
    for (size_t i = 0; i < files.size() && !view.ok(); ++i)
      if (absl::StatusOr<TensorView> found = files[i]->Find(name); found.ok()) view = *found;
    RETURN_IF_ERROR(view.status());
    if (view->dtype != DType::kF32 || view->bytes.size() != tensor.nbytes())
      return DataLoss("{}: {} has {} bytes of {}; expected {} bytes of F32", directory, name, view->bytes.size(), DTypeName(view->dtype), tensor.nbytes());
    std::memcpy(tensor.data_ptr(), view->bytes.data(), view->bytes.size());
  }
  return absl::OkStatus();
}

}  // namespace membank
