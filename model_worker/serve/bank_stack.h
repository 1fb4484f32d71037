// The banks of an engine: the first one and those stacked on it, all trained beside the same anchor. Each has its own memory servers, cache,
// version and access watch; to the model the levels of a stacked bank are further levels behind those of the banks before it, so effects add.
// Owned by the engine. Any thread, except that a BankUse belongs to its sequence.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "model_worker/model/transformer.h"
#include "model_worker/serve/block_loader.h"
#include "model_worker/serve/engine.h"

namespace membank {

// What one bank gives to a sequence.
struct BankUse {
  size_t bank = 0;                     // 0 = the first bank
  size_t first_level = 0;              // levels of the banks before it
  std::string version;                 // of all its blocks
  std::vector<BlockId> ids;            // one per level that is used
  std::vector<BlockHandle> blocks;     // the same, once loaded: pinned
  // Of a stacked bank, whose rights may go while the sequence lives: the access epoch at which they were seen, and the one being looked at.
  uint64_t seen_epoch = 0, asked_epoch = 0;
  absl::Time asked_at = absl::InfiniteFuture();  // when; InfiniteFuture: nobody is being asked
};

class BankStack {
 public:
  // FAILED_PRECONDITION when a bank does not belong to the anchor or two have one name. `loader`: of each bank; `access` is the bank's own.
  static absl::StatusOr<std::unique_ptr<BankStack>> Create(const std::vector<ServedBank>& banks, const AnchorWeights& anchor,
                                                           const BlockLoaderOptions& loader);

  size_t size() const { return banks_.size(); }
  const BankSpec& spec(size_t bank) const { return banks_[bank].served.client->spec(); }
  const BlockLoader& loader(size_t bank) const { return *banks_[bank].loader; }
  MemoryBatch Levels() const;            // of all banks, without groups

  // As Engine's.
  absl::StatusOr<std::vector<BlockId>> BlocksOf(size_t bank, const MemoryChoice& memory) const;
  std::vector<std::string> Versions() const ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::string> UseVersion(const std::string& bank, const std::string& version, bool check_only) ABSL_LOCKS_EXCLUDED(mu_);

  // What a sequence needs of the banks that give it a block; INVALID_ARGUMENT as BlocksOf.
  absl::StatusOr<std::vector<BankUse>> UsesOf(const MemoryChoice& memory) const ABSL_LOCKS_EXCLUDED(mu_);
  // Asks for the blocks of `use`, at the access epoch of now.
  void Load(BankUse* use, BlockLoader::Done done);
  // Whether what is loaded may go on being computed with: ABORTED when a block was blocked, UNAVAILABLE when the lease is over.
  absl::Status Check(const BankUse& use) const;
  // False: the access table has changed since the right to read the blocks was seen. Always true of the first bank.
  bool RightSeen(const BankUse& use) const;
  // UNAVAILABLE when no answer has come within the lease whether the right is still there.
  absl::Status CheckAnswered(const BankUse& use, absl::Time now) const;

 private:
  struct Bank {
    ServedBank served;
    size_t first_level = 0;
    std::unique_ptr<BlockLoader> loader;
  };

  BankStack() = default;
  absl::StatusOr<size_t> Find(const std::string& name) const;

  std::vector<Bank> banks_;  // the list is fixed after Create
  mutable absl::Mutex mu_;
  std::vector<std::string> versions_ ABSL_GUARDED_BY(mu_);  // of new sequences
};

}  // namespace membank
