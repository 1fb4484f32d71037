// A small bank on one shard in a temporary directory, and short words for what a trainer does to it.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <vector>

#include "common/bank/block_init.h"
#include "common/base/crc32c.h"
#include "memory_server/in_memory_block_store.h"
#include "memory_server/rocksdb_store.h"
#include "memory_server/shard.h"
#include "tests/testing/status_check.h"

namespace membank {

inline BankSpec SmallSpec(DType dtype = DType::kF32, uint32_t fan_out = 3) {
  BankSpec spec;
  spec.bank_id = "small";
  spec.fan_out = fan_out;
  spec.widths = {4, 2};
  spec.layers = 2;
  spec.hidden = 5;
  spec.dtype = dtype;
  spec.seed = 42;
  spec.anchor_fingerprint = spec.tree_fingerprint = "none";
  return spec;
}

using Contribution = std::vector<std::pair<BlockId, float>>;  // a gradient that has the same value everywhere

class ShardFixture {
 public:
  explicit ShardFixture(DType dtype = DType::kF32, OpenBlockStore engine = InMemoryBlockStore::Open, uint32_t fan_out = 3)
      : spec(SmallSpec(dtype, fan_out)), root(testing::TempDir() + "/shard." + std::to_string(::getpid()) + "." + std::to_string(++count_)) {
    std::filesystem::remove_all(root);
    options.data_directory = root + "/data";
    options.server_id = "m0";
    options.open_store = std::move(engine);
    options.optimizer_threads = 2;
    options.min_free_bytes = 1 << 20;
  }
  ~ShardFixture() {
    shard.reset();
    std::filesystem::remove_all(root);
  }

  absl::Status TryOpen() {
    shard.reset();
    auto opened = Shard::Open(spec, *SlotMap::Striped({{"m0", "localhost:1"}}), options);
    if (!opened.ok()) return opened.status();
    shard = *std::move(opened);
    return absl::OkStatus();
  }
  void Open() {
    const absl::Status status = TryOpen();
    ASSERT_TRUE(status.ok()) << status;
  }

  // What a kill -9 at this moment leaves on disk: the shard still runs while its directory is copied. Again, where the engine deleted a file
  // between its listing and its copy.
  std::string CrashImage() {
    while (true) {
      const std::string image = root + "/image" + std::to_string(++images_);
      std::error_code failed;
      std::filesystem::copy(options.data_directory, image, std::filesystem::copy_options::recursive, failed);
      if (failed != std::errc::no_such_file_or_directory) return image;
    }
  }

  // SGD with rate 1 and integer gradients: what was subtracted from an element is the count of what was applied.
  absl::Status Begin(uint64_t epoch, uint32_t world_size = 1, uint32_t staleness = 0, OptimizerKind optimizer = OptimizerKind::kSgd) {
    run = {"r", epoch, world_size, staleness, shard->Status().head_step + 1, optimizer};
    return shard->BeginRun(run).status();
  }
  StepId Id(uint64_t step) const { return {run.run_id, run.epoch, step}; }

  Buffer GradientBytes(BlockId id, float value, DType dtype = DType::kF32) const {
    const std::vector<float> values(spec.BlockElements(id.level), value);
    Buffer bytes(values.size() * DTypeBytes(dtype));
    EncodePayload(values, dtype, bytes.span());
    return bytes;
  }
  absl::StatusOr<PushOutcome> Push(const StepId& step, uint32_t rank, const Contribution& blocks) {
    auto push = shard->BeginPush(step, rank);
    if (!push.ok()) return push.status();
    for (const auto& [id, value] : blocks) {
      const absl::Status added = (*push)->AddBlock(id, {DType::kF32, GradientBytes(id, value)});
      if (!added.ok()) return added;
    }
    return (*push)->Finish();
  }
  absl::Status PrepareAndApply(uint64_t step, const ApplyParameters& parameters = {1, 1, 0}) {
    const auto prepared = shard->PrepareStep(Id(step), absl::Now() + absl::Seconds(10));
    if (!prepared.ok()) return prepared.status();
    return shard->ApplyStep(Id(step), parameters).status();
  }
  // One whole step of a run with one rank.
  absl::Status Train(uint64_t step, const Contribution& blocks, const ApplyParameters& parameters = {1, 1, 0}) {
    const auto pushed = Push(Id(step), 0, blocks);
    return pushed.ok() ? PrepareAndApply(step, parameters) : pushed.status();
  }
  absl::Status Checkpoint(const std::string& id) {
    const absl::Status prepared = shard->PrepareCheckpoint(id, shard->Status().head_step);
    return prepared.ok() ? shard->CommitCheckpoint(id) : prepared;
  }

  static std::vector<uint8_t> Bytes(const BlockRead& read) { return {read.payload->data(), read.payload->data() + read.payload->size()}; }
  std::vector<float> Values(const BlockRead& read) const {
    EXPECT_EQ(Crc32c(read.payload->data(), read.payload->size()), read.crc32c);
    std::vector<float> values(read.payload->size() / DTypeBytes(spec.dtype));
    DecodePayload(read.payload->span(), spec.dtype, absl::MakeSpan(values));
    return values;
  }
  // The last element lies in W3, which starts at zero: minus the sum of what was applied to the block.
  float Count(BlockId id) {
    auto read = shard->Read(id);
    EXPECT_TRUE(read.ok()) << read.status();
    return -Values(*read).back();
  }
  std::vector<BlockId> AllBlocks() const {
    std::vector<BlockId> blocks;
    for (uint32_t level = 1; level <= spec.depth(); ++level)
      for (uint32_t cluster = 0; cluster <= ClusterCount(spec.fan_out, level); ++cluster) blocks.push_back({level, cluster});
    return blocks;
  }
  std::vector<std::vector<uint8_t>> AllPayloads() {
    std::vector<std::vector<uint8_t>> payloads;
    for (BlockId id : AllBlocks()) payloads.push_back(Bytes(*shard->Read(id)));
    return payloads;
  }

  const BankSpec spec;
  const std::string root;
  ShardOptions options;
  RunSettings run;
  std::unique_ptr<Shard> shard;

 private:
  static inline int count_ = 0;
  int images_ = 0;
};

inline absl::Time Soon() { return absl::Now() + absl::Milliseconds(30); }

}  // namespace membank
