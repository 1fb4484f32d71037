#include "model_worker/train/compute.h"

#include <algorithm>
#include <cmath>

#include "common/base/status_macros.h"

namespace membank {
namespace {

absl::Status NotFinite(const TrainBatch& batch, double loss) {
  return FailedPrecondition("the loss of step {} is {}; its batch is {}. The last checkpoint is intact: lower --learning-rate or look at these "
                            "sequences", batch.step, loss, SequencesText(batch));
}

}  // namespace

absl::StatusOr<UpdateResult> RunUpdate(Transformer& model, const BankSpec& spec, const TrainBatch& batch,
                                       absl::Span<const BlockHandle> blocks, uint32_t micro_batch_sequences, double z_loss,
                                       AnchorParameters* anchor) {
  UpdateResult result;
  for (const BlockHandle& block : blocks) result.gradients.push_back(torch::zeros(block->values.sizes(), torch::kFloat));
  const size_t stride = micro_batch_sequences == 0 ? batch.sequences.size() : micro_batch_sequences;
  double fetched = 0, generic = 0, z = 0;  // shares of the mean
  // Of rows [begin, end), already divided by the number of targets it is a mean over; its value without the z-loss is added to `share`.
  const auto loss_of = [&](const MicroBatch& micro, const torch::Tensor& hidden, int64_t begin, int64_t end, bool is_generic, double* share) {
    double z_share = 0;
    const torch::Tensor loss = model.Loss(hidden.slice(0, begin, end), micro.targets.slice(0, begin, end),
                                          static_cast<double>(batch.Denominator(is_generic)), z_loss, &z_share);
    *share += loss.item<double>() - z_share;
    z += z_share;
    return loss;
  };
  for (size_t begin = 0; begin < batch.sequences.size(); begin += stride) {
    const size_t end = std::min(begin + stride, batch.sequences.size());
    const MicroBatch micro = MakeMicroBatch(spec, batch, begin, end, blocks, result.gradients);
    const int64_t rows = micro.targets.size(0);
    const torch::Tensor hidden = model.Forward(micro.rows);
    torch::Tensor loss;
    if (micro.generic_rows > 0) loss = loss_of(micro, hidden, 0, micro.generic_rows, /*is_generic=*/true, &generic);
    if (micro.generic_rows < rows) {
      const torch::Tensor part = loss_of(micro, hidden, micro.generic_rows, rows, /*is_generic=*/false, &fetched);
      loss = loss.defined() ? loss + part : part;
    }
    if (!std::isfinite(fetched + generic + z)) return NotFinite(batch, fetched + generic + z);
    loss.backward();
    if (anchor != nullptr) anchor->Collect();
  }
  result.shares = {fetched, generic, z};
  return result;
}

UpdateLosses LossesOf(const BatchTotals& totals, const LossShares& shares) {
  const uint64_t generic_targets = totals.generic_targets, fetched_targets = totals.targets - generic_targets;
  UpdateLosses losses;
  losses.loss = totals.control ? shares.fetched : shares.fetched + shares.generic;
  if (generic_targets > 0) losses.generic = shares.generic * totals.Denominator(true) / generic_targets;
  if (fetched_targets > 0) losses.fetched = shares.fetched * totals.Denominator(false) / fetched_targets;
  return losses;
}

}  // namespace membank
