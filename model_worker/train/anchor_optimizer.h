// AdamW for a learning anchor: fp32 moments, fp32 master weights when the model is bf16. All parameters decay, as in OpenLM, unless vectors
// (norms, biases) are left out. The memory servers run the same arithmetic for blocks. Owned by the trainer; one thread.
#pragma once

#include <torch/torch.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "model_worker/train/anchor_parameters.h"

namespace membank {

class AnchorOptimizer {
 public:
  // Of the parameters that this rank owns.
  AnchorOptimizer(AnchorParameters* parameters, double beta1, double beta2, double epsilon, bool decay_vectors);

  // One update of the owned parameters with gradients times `scale`, which it changes.
  void Step(double scale, double learning_rate, double weight_decay);

  // Moments, master weights and step count of the owned parameters as one safetensors file of a checkpoint's directory; those of all ranks together
  // are the state, whatever number of ranks loads it. Load checks every name and size.
  absl::Status Save(const std::string& directory, uint32_t rank) const;
  absl::Status Load(const std::string& directory);

 private:
  struct State {
    std::string name;
    torch::Tensor parameter, gradient;
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
