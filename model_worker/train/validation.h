// The loss on held-out documents: every sequence of a packed corpus of its own, with the memory of its path, with the generic memory, and with
// none. Nothing is trained. Owned by the trainer's rank 0; one thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/text/tokenizer.h"
#include "model_worker/train/batch.h"
#include "model_worker/train/options.h"
#include "nlohmann/json_fwd.hpp"

namespace membank {

struct ValidationLoss {
  std::string memory;           // "fetched", "generic", "none"
  double loss = 0;              // nats per target
  double bits_per_byte = 0;     // of the targets' text
};

struct ValidationResult {
  uint64_t targets = 0, bytes = 0;
  double seconds = 0;
  std::vector<ValidationLoss> losses;

  nlohmann::json ToJson() const;
  std::string ToText() const;   // "fetched 3.1415 (1.234 bits per byte), none ..."
};

class Validation {
 public:
  // FAILED_PRECONDITION when the corpus does not fit the anchor or the bank, or is the training corpus itself.
  static absl::StatusOr<std::unique_ptr<Validation>> Open(const TrainOptions& options, const BankSpec& spec, const AnchorWeights& anchor,
                                                          const Tokenizer& tokenizer, const std::string& training_fingerprint);

  // Of the live head, which must have applied `server_step`.
  absl::StatusOr<ValidationResult> Run(Transformer& model, BlockCache& cache, uint64_t server_step);

 private:
  Validation(const TrainOptions& options, const BankSpec& spec) : options_(options), spec_(spec) {}
  absl::Status Choose(const Tokenizer& tokenizer);
  absl::StatusOr<double> SumOfLosses(Transformer& model, BlockCache& cache, MemoryMode mode, uint64_t server_step) const;

  const TrainOptions& options_;
  const BankSpec& spec_;
  std::unique_ptr<PackedCorpus> corpus_;
  std::vector<uint64_t> indices_;               // sorted by leaf, so that a forward pass touches few blocks
  uint64_t targets_ = 0, bytes_ = 0;
  std::optional<double> frozen_none_;           // a frozen anchor alone has one loss
};

}  // namespace membank
