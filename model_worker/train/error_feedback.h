// Gradients as I8_ROWS without losing what rounding drops: it is kept here, in fp32, and added to the block's next gradient (error feedback).
// Four bytes for every parameter of the blocks that this rank has trained. Part of the run's state: a checkpoint holds every rank's. Owned by
// the trainer; one thread.
#pragma once

#include <torch/torch.h>

#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "common/bank/bank_spec.h"

namespace membank {

class ErrorFeedback {
 public:
  ErrorFeedback(const BankSpec& spec, uint32_t rank, uint32_t world_size) : spec_(spec), rank_(rank), world_size_(world_size) {}

  // The I8_ROWS form (kByte) of a flat fp32 gradient plus what is left of the block's earlier ones.
  torch::Tensor Encode(BlockId id, const torch::Tensor& gradient);

  // In a checkpoint's directory. Another number of ranks may have saved what this one loads: nothing is lost, each file goes to one rank.
  absl::Status Save(const std::string& directory) const;
  absl::Status Load(const std::string& directory);

 private:
  absl::Status LoadFile(const std::string& path);

  const BankSpec& spec_;
  const uint32_t rank_, world_size_;
  absl::flat_hash_map<BlockId, torch::Tensor> left_;
};

}  // namespace membank
