#include "model_worker/train/validation.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/base/status_macros.h"
#include "model_worker/train/run_setup.h"
#include "model_worker/train/stopwatch.h"
#include "nlohmann/json.hpp"

namespace membank {

nlohmann::json ValidationResult::ToJson() const {
  nlohmann::json json = {{"targets", targets}, {"bytes", bytes}, {"seconds", seconds}};
  for (const ValidationLoss& one : losses) json[one.memory] = {{"loss", one.loss}, {"bits_per_byte", one.bits_per_byte}};
  return json;
}

std::string ValidationResult::ToText() const {
  std::string text;
  for (const ValidationLoss& one : losses)
    text += fmt::format("{}{} {:.4f} ({:.4f} bits per byte)", text.empty() ? "" : ", ", one.memory, one.loss, one.bits_per_byte);
  return text;
}

absl::StatusOr<std::unique_ptr<Validation>> Validation::Open(const TrainOptions& options, const BankSpec& spec, const AnchorWeights& anchor,
                                                             const Tokenizer& tokenizer, const std::string& training_fingerprint) {
  std::unique_ptr<Validation> validation(new Validation(options, spec));
  ASSIGN_OR_RETURN(validation->corpus_, PackedCorpus::Open(options.validation_path));
  const PackedInfo& info = validation->corpus_->info();
  absl::Status fits = CheckCorpusFits(info, anchor.config, tokenizer.Fingerprint());
  if (fits.ok() && options.HasBank()) fits = CheckBankFits(spec, info, anchor.config, anchor.origin);
  if (!fits.ok()) return Annotate(fits, "--validation " + options.validation_path);
  if (validation->corpus_->Fingerprint() == training_fingerprint)
    return FailedPrecondition("--validation {} is the corpus that is trained on; hold documents out with `membank corpus build --held-out`",
                              options.validation_path);
  RETURN_IF_ERROR(validation->Choose(tokenizer));
  return validation;
}

// The corpus is shuffled: its first sequences are a sample.
absl::Status Validation::Choose(const Tokenizer& tokenizer) {
  const uint64_t count = options_.validation_sequences == 0 ? corpus_->size() : std::min(corpus_->size(), options_.validation_sequences);
  std::vector<std::pair<uint32_t, uint64_t>> chosen;  // leaf, index
  for (uint64_t index = 0; index < count; ++index) {
    ASSIGN_OR_RETURN(const PackedSequence sequence, corpus_->Read(index));
    chosen.emplace_back(sequence.leaf, index);
    targets_ += CountTargets(sequence);
    uint32_t begin = 0;
    for (const uint32_t end : sequence.document_ends) {
      if (end > begin + 1) {  // a document's first token is nobody's target
        ASSIGN_OR_RETURN(const std::string text, tokenizer.Decode(absl::MakeConstSpan(sequence.tokens).subspan(begin + 1, end - begin - 1)));
        bytes_ += text.size();
      }
      begin = end;
    }
  }
  if (targets_ == 0 || bytes_ == 0) return FailedPrecondition("--validation {} holds no document of two tokens or more", options_.validation_path);
  std::sort(chosen.begin(), chosen.end());
  for (const auto& [leaf, index] : chosen) indices_.push_back(index);
  return absl::OkStatus();
}

absl::StatusOr<ValidationResult> Validation::Run(Transformer& model, BlockCache& cache, uint64_t server_step) {
  ValidationResult result{targets_, bytes_};
  Stopwatch watch;
  const auto add = [&](const char* memory, double sum) {
    result.losses.push_back({memory, sum / static_cast<double>(targets_), sum / std::numbers::ln2 / static_cast<double>(bytes_)});
  };
  if (options_.HasBank()) {
    ASSIGN_OR_RETURN(const double fetched, SumOfLosses(model, cache, MemoryMode::kFetched, server_step));
    add("fetched", fetched);
  }
  if (options_.generic_control || options_.EffectiveGenericProbability(spec_.fan_out) > 0) {
    ASSIGN_OR_RETURN(const double generic, SumOfLosses(model, cache, MemoryMode::kGeneric, server_step));
    add("generic", generic);
  }
  double none = frozen_none_.value_or(0);
  if (!frozen_none_.has_value()) {
    ASSIGN_OR_RETURN(none, SumOfLosses(model, cache, MemoryMode::kNone, server_step));
  }
  if (!options_.TrainsAnchor()) frozen_none_ = none;
  add("none", none);
  result.seconds = watch.Lap();
  return result;
}

absl::StatusOr<double> Validation::SumOfLosses(Transformer& model, BlockCache& cache, MemoryMode mode, uint64_t server_step) const {
  torch::NoGradGuard no_grad;
  const size_t stride = options_.micro_batch_sequences > 0 ? options_.micro_batch_sequences : options_.batch_sequences;
  double sum = 0;
  for (size_t begin = 0; begin < indices_.size(); begin += stride) {
    TrainBatch batch;
    for (size_t i = begin; i < std::min(begin + stride, indices_.size()); ++i) {
      TrainSequence& sequence = batch.sequences.emplace_back();
      sequence.index = indices_[i];
      ASSIGN_OR_RETURN(sequence.data, corpus_->Read(sequence.index));
      sequence.path = {mode, spec_.depth(), mode == MemoryMode::kFetched ? sequence.data.leaf : 0};
    }
    FinishBatch(spec_, &batch);
    ASSIGN_OR_RETURN(const std::vector<BlockHandle> blocks, cache.Get(batch.blocks, server_step));
    const MicroBatch rows = MakeMicroBatch(spec_, batch, 0, batch.sequences.size(), blocks, {});
    sum += model.Loss(model.Forward(rows.rows), rows.targets, 1).item<double>();
  }
  return sum;
}

}  // namespace membank
