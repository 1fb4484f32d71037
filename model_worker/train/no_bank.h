// The memory servers of a run that has no bank: it trains the anchor alone (`--mode anchor`), on the road of all other runs. Every step has no
// blocks and is applied at once; checkpoints are the trainer's own files. With several ranks it adds up their sums and passes on what rank 0 says
// of the run, as the servers do. Any thread; pushes from one.
#pragma once

#include "absl/synchronization/mutex.h"
#include "common/client/memory_client.h"
#include "common/corpus/packed.h"
#include "model_worker/train/collectives.h"

namespace membank {

class NoBank : public MemoryClient {
 public:
  // A bank whose levels are all empty, over the corpus' tree. `rendezvous` and `collectives` (nobody else's): null with one rank.
  NoBank(const PackedInfo& corpus, Rendezvous* rendezvous, std::unique_ptr<Collectives> collectives);

  const BankSpec& spec() const override { return spec_; }
  absl::StatusOr<BankStatus> GetStatus() override;
  absl::StatusOr<std::vector<std::string>> ListVersions(std::chrono::milliseconds timeout) override { return std::vector<std::string>(); }
  absl::Status Fetch(absl::Span<BlockFetch> blocks, const FetchOptions& options) override { return absl::OkStatus(); }
  absl::Status Prefetch(absl::Span<const BlockId> ids) override { return absl::OkStatus(); }
  absl::Status BeginRun(const RunSettings& settings) override;
  absl::Status Push(const StepId& step, uint32_t rank, absl::Span<const BlockGradient> gradients, absl::Span<const double> sums) override;
  absl::StatusOr<double> PrepareStep(const StepId& step, std::chrono::milliseconds timeout) override { return 0; }
  absl::Status ApplyStep(const StepId& step, const ApplyParameters& parameters) override;
  absl::StatusOr<std::vector<double>> AwaitStep(const StepId& step, std::chrono::milliseconds timeout) override;
  absl::StatusOr<JoinedRun> JoinRun(const RunMember& member, std::chrono::milliseconds timeout) override;
  absl::Status SnapshotCheckpoint(const std::string& id, uint64_t step) override { return absl::OkStatus(); }
  absl::Status PrepareCheckpoint(const std::string& id, uint64_t step) override { return absl::OkStatus(); }
  absl::Status CommitCheckpoint(const std::string& id, uint32_t keep) override { return absl::OkStatus(); }
  absl::Status AbortCheckpoint(const std::string& id) override { return absl::OkStatus(); }
  absl::Status DeleteCheckpoint(const std::string& id) override { return absl::OkStatus(); }
  absl::Status RestoreCheckpoint(const std::string& id) override { return absl::OkStatus(); }
  absl::Status Rewind(uint64_t step) override;
  absl::StatusOr<std::vector<CheckpointInfo>> ListCheckpoints() override { return std::vector<CheckpointInfo>(); }
  absl::Status Publish(const std::string& checkpoint_id, const std::string& version, PayloadType payload) override;
  ClientTraffic traffic() const override { return {}; }

 private:
  BankSpec spec_;
  Rendezvous* const rendezvous_;
  const std::unique_ptr<Collectives> collectives_;
  absl::Mutex mu_;
  uint64_t head_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<double> sums_ ABSL_GUARDED_BY(mu_);  // of the newest step
};

}  // namespace membank
