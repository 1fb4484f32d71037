// The parameters of a learning anchor over the ranks that share its batches. Gradients of a step are collected in fp32, whatever the model's type,
// so that many micro-batches add up as one batch does. Each rank owns a run of the parameters, about as large as any other's: sums of gradients
// arrive there, the optimizer's state lives there (ZeRO-1), and updated values go from there to all. Tensors travel in buckets, several at once.
// With one rank everything is its own and nothing travels. Owned by the trainer; one thread.
#pragma once

#include <torch/torch.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "model_worker/train/collectives.h"

namespace membank {

class AnchorParameters {
 public:
  // `parameters` with requires_grad set, as AnchorWeights::Named gives them; no tensor twice. `collectives` null: one rank.
  AnchorParameters(std::vector<std::pair<std::string, torch::Tensor>> parameters, Collectives* collectives);

  size_t size() const { return parameters_.size(); }
  const std::string& name(size_t i) const { return parameters_[i].first; }
  const torch::Tensor& value(size_t i) const { return parameters_[i].second; }
  bool owned(size_t i) const;
  // fp32, the parameter's shape; a view.
  torch::Tensor gradient(size_t i) const { return gradients_[i]; }

  // Moves what a backward pass left in .grad() to the step's gradients.
  void Collect();
  // Sums the gradients over the ranks, each at its owner; every rank learns the sum of squares of all. Started early, sums travel while the caller
  // does something else. `step` is said in errors.
  void StartSum();
  absl::StatusOr<double> FinishSum(uint64_t step);
  // After the owners' updates: sends the new values to all, and begins a new step.
  absl::Status Share(uint64_t step);
  // A number of rank 0's, everywhere.
  absl::StatusOr<double> FromRankZero(double value, const std::string& what);
  // Returns when all ranks have come here.
  absl::Status Meet(const std::string& what);

 private:
  struct Bucket {
    size_t begin = 0, end = 0;   // parameters
    uint32_t owner = 0;
    torch::Tensor gradients;     // flat, fp32
  };
  void MakeBuckets();

  const std::vector<std::pair<std::string, torch::Tensor>> parameters_;
  Collectives* const collectives_;
  std::vector<Bucket> buckets_;
  std::vector<torch::Tensor> gradients_;
  bool empty_ = true;            // nothing collected yet in this step
};

}  // namespace membank
