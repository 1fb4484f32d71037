#include "model_worker/train/compute.h"

#include <algorithm>
#include <cmath>

#include "common/base/status_macros.h"

namespace membank {
namespace {

// Loss of rows [begin, end), already divided by the number of targets it is a mean over.
torch::Tensor LossOf(Transformer& model, const torch::Tensor& hidden, const torch::Tensor& targets, int64_t begin, int64_t end,
                     uint64_t denominator) {
  return model.Loss(hidden.slice(0, begin, end), targets.slice(0, begin, end), static_cast<double>(denominator));
}

absl::Status NotFinite(const TrainBatch& batch, double loss) {
  std::string indices;
  for (size_t i = 0; i < std::min<size_t>(batch.sequences.size(), 16); ++i) indices += fmt::format(" {}", batch.sequences[i].index);
  return FailedPrecondition("the loss of step {} is {}; its batch is corpus sequences{}{}. The last checkpoint is intact: lower "
                            "--learning-rate or look at these sequences", batch.step, loss, indices, batch.sequences.size() > 16 ? " ..." : "");
}

}  // namespace

absl::StatusOr<UpdateResult> RunUpdate(Transformer& model, const BankSpec& spec, const TrainBatch& batch,
                                       absl::Span<const BlockHandle> blocks, uint32_t micro_batch_sequences) {
  UpdateResult result;
  for (const BlockHandle& block : blocks) result.gradients.push_back(torch::zeros(block->values.sizes(), torch::kFloat));
  const size_t stride = micro_batch_sequences == 0 ? batch.sequences.size() : micro_batch_sequences;
  double fetched = 0, generic = 0;  // shares of the mean
  for (size_t begin = 0; begin < batch.sequences.size(); begin += stride) {
    const size_t end = std::min(begin + stride, batch.sequences.size());
    const MicroBatch micro = MakeMicroBatch(spec, batch, begin, end, blocks, result.gradients);
    const int64_t rows = micro.targets.size(0);
    const torch::Tensor hidden = model.Forward(micro.rows);
    torch::Tensor loss;
    if (micro.generic_rows > 0) {
      loss = LossOf(model, hidden, micro.targets, 0, micro.generic_rows, batch.Denominator(/*generic=*/true));
      generic += loss.item<double>();
    }
    if (micro.generic_rows < rows) {
      const torch::Tensor part = LossOf(model, hidden, micro.targets, micro.generic_rows, rows, batch.Denominator(/*generic=*/false));
      fetched += part.item<double>();
      loss = loss.defined() ? loss + part : part;
    }
    if (!std::isfinite(fetched + generic)) return NotFinite(batch, fetched + generic);
    loss.backward();
  }
  result.shares = {fetched, generic};
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
