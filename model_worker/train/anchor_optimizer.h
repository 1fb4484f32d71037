// AdamW for a learning anchor: fp32 moments, fp32 master weights when the model is bf16. All parameters decay, as in OpenLM, unless vectors
// (norms, biases) are left out. The memory servers run the same arithmetic for blocks. Owned by the trainer; one thread.
#pragma once

#include <torch/torch.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace membank {

class AnchorOptimizer {
 public:
  // `parameters` with requires_grad set, as AnchorWeights::Named gives them; no tensor twice.
  AnchorOptimizer(std::vector<std::pair<std::string, torch::Tensor>> parameters, double beta1, double beta2, double epsilon, bool decay_vectors);

  // Sum of squares of all gradients, fp64: the anchor's part of the global norm.
  double SumOfSquares() const;
  // One update with gradients times `scale`; clears the gradients.
  void Step(double scale, double learning_rate, double weight_decay);

  // Moments, master weights and step count as one safetensors file. Load checks every name and shape.
  absl::Status Save(const std::string& path) const;
  absl::Status Load(const std::string& path);

 private:
  struct State {
    std::string name;
    torch::Tensor parameter;
    torch::Tensor weights;        // fp32: `parameter` itself or its master copy
    torch::Tensor first, second;  // fp32 moments
  };
  // One group: the vectors, or all others.
  void Update(bool vectors, double scale, double learning_rate, double weight_decay);
  // The state's tensors under their names in the file.
  std::vector<std::pair<std::string, torch::Tensor>> Tensors() const;

  std::vector<State> states_;
  torch::Tensor steps_;           // fp32 scalar, one for all parameters
  const double beta1_, beta2_, epsilon_;
  const bool decay_vectors_;
};

}  // namespace membank
