// A MemoryClient over shards of this process: the real shards, optimizer and checkpoints without the wire, for tests of the trainer.
// `Crash` drops everything that is not in a committed checkpoint, as a kill -9 of all servers does. Any thread, except Crash.
#pragma once

#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/client/memory_client.h"
#include "fmt/format.h"
#include "gtest/gtest.h"
#include "memory_server/in_memory_block_store.h"
#include "memory_server/shard.h"

namespace membank::testing_support {

class ShardMemoryClient : public MemoryClient {
 public:
  // Data under `directory`; blocks are striped over `servers`.
  ShardMemoryClient(const BankSpec& spec, const std::string& directory, int servers, Durability durability = Durability::kCheckpoint)
      : spec_(spec), directory_(directory), map_(MakeMap(servers)), durability_(durability) {
    Open();
  }

  void Crash() {
    for (auto& shard : shards_) shard->Shutdown();
    shards_.clear();
    Open();
  }

  // Called before every call that changes the servers, with its name; an error is returned instead of making the call. Steps and checkpoints
  // come from different threads.
  std::function<absl::Status(const std::string& call)> intercept;

  std::atomic<double> norm_factor = 1;  // NaN: what PrepareStep says of a broken gradient

  std::set<BlockId> announced;  // by Prefetch

  const BankSpec& spec() const override { return spec_; }

  absl::StatusOr<BankStatus> GetStatus() override {
    BankStatus status;
    status.spec = spec_;
    status.head_step = ~uint64_t{0};
    for (const auto& shard : shards_) {
      const ShardStatus one = shard->Status();
      status.head_step = std::min(status.head_step, one.head_step);
      status.durable_steps = one.durable_steps;
      status.run_id = one.run_id;
      status.run_epoch = std::max(status.run_epoch, one.run_epoch);
      status.versions = one.versions;
      status.touched_blocks += one.touched_blocks;
      status.resident_bytes += one.resident_bytes;
    }
    return status;
  }
  absl::StatusOr<std::vector<std::string>> ListVersions(std::chrono::milliseconds) override {
    std::vector<std::string> names;
    for (const BankVersion& version : shards_[0]->ListVersions()) names.push_back(version.name);
    return names;
  }

  absl::Status Fetch(absl::Span<BlockFetch> blocks, const FetchOptions& options) override {
    for (BlockFetch& block : blocks) {
      Shard& shard = *shards_[map_.OwnerOf(block.id)];
      RETURN_IF_ERROR(shard.WaitForStep(options.min_step, absl::Now() + absl::FromChrono(options.timeout)));
      ASSIGN_OR_RETURN(const BlockRead read, options.bank_version.empty() ? shard.Read(block.id, block.newer_than)
                                                                          : shard.ReadVersion(options.bank_version, block.id, block.newer_than));
      block.version = read.version;
      block.unchanged = read.unchanged;
      unchanged_blocks_ += read.unchanged;
      fetched_blocks_ += 1;
      if (read.unchanged) continue;
      if (read.type != PayloadType::kBank && !options.int8) return FailedPrecondition("block {} comes as int8", ToString(block.id));
      block.payload = read.type;
      std::memcpy(block.destination.data(), read.payload->data(), read.payload->size());
      fetched_bytes_ += read.payload->size();
    }
    return absl::OkStatus();
  }

  absl::Status Prefetch(absl::Span<const BlockId> ids) override {
    for (const BlockId id : ids) {
      announced.insert(id);
      RETURN_IF_ERROR(shards_[map_.OwnerOf(id)]->Prefetch({&id, 1}));
    }
    return absl::OkStatus();
  }

  absl::Status BeginRun(const RunSettings& settings) override {
    return OnAll("BeginRun", [&](Shard& shard) { return shard.BeginRun(settings).status(); });
  }

  absl::Status Push(const StepId& step, uint32_t rank, absl::Span<const BlockGradient> gradients, absl::Span<const double> sums = {}) override {
    if (intercept) RETURN_IF_ERROR(intercept("Push"));
    for (size_t server = 0; server < shards_.size(); ++server) {
      ASSIGN_OR_RETURN(const std::unique_ptr<GradientPush> push, shards_[server]->BeginPush(step, rank, {sums.begin(), sums.end()}));
      for (const BlockGradient& gradient : gradients) {
        if (map_.OwnerOf(gradient.id) != server) continue;
        Buffer bytes(gradient.bytes.size());
        std::memcpy(bytes.data(), gradient.bytes.data(), gradient.bytes.size());
        RETURN_IF_ERROR(push->AddBlock(gradient.id, {gradient.dtype, std::move(bytes)}));
        pushed_bytes_ += gradient.bytes.size();
      }
      RETURN_IF_ERROR(push->Finish().status());
    }
    return absl::OkStatus();
  }

  absl::StatusOr<double> PrepareStep(const StepId& step, std::chrono::milliseconds timeout) override {
    double sum = 0;
    RETURN_IF_ERROR(OnAll("PrepareStep", [&](Shard& shard) -> absl::Status {
      ASSIGN_OR_RETURN(const double part, shard.PrepareStep(step, absl::Now() + absl::FromChrono(timeout)));
      sum += part;
      return absl::OkStatus();
    }));
    return sum * norm_factor;
  }

  absl::Status ApplyStep(const StepId& step, const ApplyParameters& parameters) override {
    return OnAll("ApplyStep", [&](Shard& shard) { return shard.ApplyStep(step, parameters).status(); });
  }
  absl::StatusOr<std::vector<double>> AwaitStep(const StepId& step, std::chrono::milliseconds timeout) override {
    std::vector<double> sums;
    for (const auto& shard : shards_) {
      ASSIGN_OR_RETURN(sums, shard->AwaitStep(step, absl::Now() + absl::FromChrono(timeout)));
    }
    return sums;
  }
  absl::StatusOr<JoinedRun> JoinRun(const RunMember& member, std::chrono::milliseconds timeout) override {
    return shards_[0]->JoinRun(member, absl::Now() + absl::FromChrono(timeout));
  }
  absl::Status SnapshotCheckpoint(const std::string& id, uint64_t step) override {
    return OnAll("SnapshotCheckpoint", [&](Shard& shard) { return shard.SnapshotCheckpoint(id, step); });
  }
  absl::Status PrepareCheckpoint(const std::string& id, uint64_t step) override {
    return OnAll("PrepareCheckpoint", [&](Shard& shard) { return shard.PrepareCheckpoint(id, step); });
  }
  absl::Status CommitCheckpoint(const std::string& id, uint32_t keep = 0) override {
    return OnAll("CommitCheckpoint", [&](Shard& shard) { return shard.CommitCheckpoint(id, keep); });
  }
  absl::Status AbortCheckpoint(const std::string& id) override {
    return OnAll("AbortCheckpoint", [&](Shard& shard) { return shard.AbortCheckpoint(id); });
  }
  absl::Status DeleteCheckpoint(const std::string& id) override {
    return OnAll("DeleteCheckpoint", [&](Shard& shard) { return shard.DeleteCheckpoint(id); });
  }
  absl::Status RestoreCheckpoint(const std::string& id) override {
    return OnAll("RestoreCheckpoint", [&](Shard& shard) { return shard.RestoreCheckpoint(id); });
  }
  absl::Status Rewind(uint64_t step) override {
    return OnAll("Rewind", [&](Shard& shard) { return shard.Rewind(step); });
  }
  absl::StatusOr<std::vector<CheckpointInfo>> ListCheckpoints() override { return shards_[0]->ListCheckpoints(); }
  absl::Status Publish(const std::string& checkpoint_id, const std::string& version, PayloadType payload = PayloadType::kBank) override {
    return OnAll("Publish", [&](Shard& shard) { return shard.Publish(checkpoint_id, version, payload); });
  }
  ClientTraffic traffic() const override { return {fetched_bytes_, pushed_bytes_, fetched_blocks_, unchanged_blocks_}; }

  // Payloads of all blocks, generic ones too, in order: to compare banks bit by bit.
  std::string Dump() {
    std::string bytes;
    for (uint32_t level = 1; level <= spec_.depth(); ++level) {
      for (uint32_t cluster = 0; cluster <= ClusterCount(spec_.fan_out, level); ++cluster) {
        const auto read = shards_[map_.OwnerOf({level, cluster})]->Read({level, cluster});
        EXPECT_TRUE(read.ok()) << read.status();
        bytes.append(reinterpret_cast<const char*>(read->payload->data()), read->payload->size());
      }
    }
    return bytes;
  }

 private:
  static SlotMap MakeMap(int servers) {
    std::vector<SlotServer> names;
    for (int i = 0; i < servers; ++i) names.push_back({fmt::format("m{}", i), fmt::format("unix:/m{}", i)});
    return *SlotMap::Striped(names);
  }

  void Open() {
    for (const SlotServer& server : map_.servers()) {
      ShardOptions options;
      options.data_directory = directory_ + "/" + server.id;
      options.server_id = server.id;
      options.open_store = InMemoryBlockStore::Open;
      options.min_free_bytes = 0;
      options.optimizer_threads = 1;
      options.durability = durability_;
      auto shard = Shard::Open(spec_, map_, options);
      EXPECT_TRUE(shard.ok()) << shard.status();
      shards_.push_back(*std::move(shard));
    }
  }

  absl::Status OnAll(const std::string& name, const std::function<absl::Status(Shard&)>& call) {
    for (const auto& shard : shards_) {
      if (intercept) RETURN_IF_ERROR(intercept(name));  // per server: a crash may leave some done and some not
      RETURN_IF_ERROR(call(*shard));
    }
    return absl::OkStatus();
  }

  const BankSpec spec_;
  const std::string directory_;
  const SlotMap map_;
  const Durability durability_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<uint64_t> fetched_bytes_{0}, pushed_bytes_{0}, fetched_blocks_{0}, unchanged_blocks_{0};
};

}  // namespace membank::testing_support
