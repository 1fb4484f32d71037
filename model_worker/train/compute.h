// Forward and backward of one update in micro-batches. The loss is the mean over all target tokens of the whole update, so any number of
// micro-batches gives the same gradient (up to the order of fp32 sums). One thread.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "model_worker/train/anchor_parameters.h"
#include "model_worker/train/batch.h"

namespace membank {

// Sums over the targets of each kind of memory, divided by the denominator of the whole update: those of all ranks add up to the means.
struct LossShares {
  double fetched = 0, generic = 0;
  double z = 0;                             // what the z-loss adds to the loss that is minimised; not part of the others
};

struct UpdateResult {
  LossShares shares;                        // of this rank's sequences
  std::vector<torch::Tensor> gradients;     // of batch.blocks, flat, fp32
};

struct UpdateLosses {
  double loss = 0;                          // mean over all targets; with a generic control over the fetched ones
  double fetched = 0, generic = 0;          // means over the targets of each kind; 0 where there are none
};
UpdateLosses LossesOf(const BatchTotals& totals, const LossShares& shares);  // shares: of all ranks

// `anchor`: collects the gradients of a learning anchor; null: it is frozen. A loss that is not finite is FAILED_PRECONDITION naming the step
// and the corpus indices of its sequences; nothing was pushed then.
absl::StatusOr<UpdateResult> RunUpdate(Transformer& model, const BankSpec& spec, const TrainBatch& batch,
                                       absl::Span<const BlockHandle> blocks, uint32_t micro_batch_sequences, double z_loss, AnchorParameters* anchor);

}  // namespace membank
