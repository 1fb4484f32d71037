// Sums and copies of tensors over the ranks that train one anchor: c10d's Gloo, as the Torch wheel has it. All ranks make the same calls in the
// same order, each from one thread at a time; two threads need two Collectives, made in the same order everywhere. A rank that is gone or stays
// away is UNAVAILABLE or DEADLINE_EXCEEDED and named, on all others, within the rendezvous' timeout; the Collectives are of no use then.
#pragma once

#include <torch/torch.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model_worker/train/rendezvous.h"

namespace membank {

class Collectives {
 public:
  // `name` tells the Collectives of one rendezvous apart, which must outlive them.
  static absl::StatusOr<std::unique_ptr<Collectives>> Create(Rendezvous* rendezvous, const std::string& name);
  ~Collectives();

  uint32_t rank() const { return rendezvous_->options().rank; }
  uint32_t world_size() const { return rendezvous_->options().world_size; }

  // Each starts work on a contiguous tensor, which must not be touched until Wait.
  void StartReduce(torch::Tensor tensor, uint32_t root);      // the sum arrives at `root`; elsewhere the tensor is garbage afterwards
  void StartBroadcast(torch::Tensor tensor, uint32_t root);
  void StartAllReduce(torch::Tensor tensor);                  // the sum, everywhere
  // Waits for all that was started; `what` is said in errors ("the anchor's gradients of step 7").
  absl::Status Wait(const std::string& what);

 private:
  struct Impl;
  explicit Collectives(Rendezvous* rendezvous);
  template <typename Call>
  void Start(Call call);
  absl::Status Broken(const std::string& what, const std::string& why);

  Rendezvous* const rendezvous_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace membank
