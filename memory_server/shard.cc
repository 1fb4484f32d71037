// Opening, reading and status. shard_training.cc has runs and steps, shard_checkpoint.cc has checkpoints and versions.
#include "memory_server/shard.h"

#include <algorithm>
#include <filesystem>
#include <thread>

#include "common/bank/block_init.h"
#include "common/base/crc32c.h"
#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "memory_server/block_record.h"
#include "memory_server/rocksdb_store.h"
#include "memory_server/shard_state.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;

// Buffers kept for reuse: a small part of the budget, so that RAM stays near it.
uint64_t IdleBufferBytes(const ShardOptions& options) {
  constexpr uint64_t kMost = 256ull << 20;
  return options.memory_budget_bytes == 0 ? kMost : std::min(kMost, options.memory_budget_bytes / 32);
}

// <data>/bank.json (the spec) and <data>/server.json pin which bank and which server a directory belongs to. server.json is written
// last: a directory without it is new.
absl::Status CheckIdentity(const std::string& data_directory, const BankSpec& spec, const std::string& server_id) {
  const std::string spec_path = data_directory + "/bank.json", server_path = data_directory + "/server.json";
  if (!std::filesystem::exists(server_path)) {
    RETURN_IF_ERROR(WriteFileAtomic(spec_path, spec.ToJson()));
    return WriteFileAtomic(server_path, Json{{"server_id", server_id}}.dump());
  }
  ASSIGN_OR_RETURN(const std::string spec_text, ReadFile(spec_path));
  const absl::StatusOr<BankSpec> stored = BankSpec::FromJson(spec_text);
  if (!stored.ok()) return DataLoss("{} is damaged: {}", spec_path, std::string(stored.status().message()));
  if (stored->Hash() != spec.Hash())
    return FailedPrecondition("data directory {} holds a bank with spec hash {}, the spec given has {}; give the server another data directory",
                              data_directory, stored->Hash(), spec.Hash());
  ASSIGN_OR_RETURN(const std::string server_text, ReadFile(server_path));
  const Json server = ParseJson(server_text).value_or(Json());
  const bool readable = server.is_object() && server.contains("server_id") && server["server_id"].is_string();
  if (!readable) return DataLoss("{} is damaged: no server_id in it", server_path);
  const std::string stored_id = server["server_id"].get<std::string>();
  if (stored_id != server_id)
    return FailedPrecondition("data directory {} belongs to server \"{}\", not to \"{}\"; give each server its own", data_directory, stored_id,
                              server_id);
  return absl::OkStatus();
}

}  // namespace

Shard::Shard(const BankSpec& spec, const SlotMap& slot_map, const ShardOptions& options)
    : spec_(spec),
      spec_hash_(spec.Hash()),
      options_(options),
      ownership_(options.replica_of.empty() ? options.server_id : options.replica_of, slot_map),
      buffers_(BufferPool::Create(IdleBufferBytes(options))),
      generated_(options.generated_cache_bytes),
      version_payloads_(options.version_cache_bytes),
      pool_(options.optimizer_threads > 0 ? options.optimizer_threads : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))) {}

Shard::~Shard() {
  Shutdown();
  SetSnapshot(nullptr);  // its images are the table's
  table_.reset();
}

absl::StatusOr<std::unique_ptr<Shard>> Shard::Open(const BankSpec& spec, const SlotMap& slot_map, const ShardOptions& given) {
  RETURN_IF_ERROR(spec.Validate());
  ShardOptions options = given;
  if (options.open_store == nullptr) options.open_store = RocksDbStore::Open;
  const uint64_t least = BlockTable::MinimumBudget(spec);
  if (options.memory_budget_bytes > 0 && options.memory_budget_bytes < least)
    return InvalidArgument("the memory budget is {} bytes, must be 0 (no bound) or at least {}: a step over one block of the largest level",
                           options.memory_budget_bytes, least);
  RETURN_IF_ERROR(MakeDirectories(options.data_directory));

  std::unique_ptr<Shard> shard(new Shard(spec, slot_map, options));
  if (options.replica_of.empty() && slot_map.SlotsOf(options.server_id).none())
    LOG_WARN("server \"{}\" has no slots by slot map epoch {}; it waits until some are moved to it", options.server_id, slot_map.epoch());
  ASSIGN_OR_RETURN(shard->directory_lock_, DirectoryLock::Acquire(options.data_directory));
  RETURN_IF_ERROR(CheckIdentity(options.data_directory, spec, options.server_id));
  ASSIGN_OR_RETURN(shard->access_, AccessControl::Open(options.data_directory, spec.fan_out, spec.depth(), options.access));
  ASSIGN_OR_RETURN(shard->checkpoints_,
                   CheckpointStore::Open(options.data_directory, shard->spec_hash_, options.open_store, options.keep_checkpoints));

  RETURN_IF_ERROR(shard->FinishPurges());

  BlockTable::Options table;
  table.memory_budget_bytes = options.memory_budget_bytes;
  table.check_free_space = [shard = shard.get()](uint64_t bytes) { return shard->CheckFreeSpace(bytes); };
  table.open_stores = [shard = shard.get()] { return shard->checkpoints_->OpenHead(std::nullopt); };
  shard->table_ = std::make_unique<BlockTable>(shard->spec_, shard->buffers_, std::move(table));

  const std::optional<Cut> cut = shard->checkpoints_->LastCommitted();
  absl::MutexLock train(&shard->train_mu_);
  RETURN_IF_ERROR(shard->LoadRuns());
  RETURN_IF_ERROR(shard->LoadHead(cut, slot_map));
  RETURN_IF_ERROR(shard->OpenLog(cut));
  return shard;
}

void Shard::Shutdown() {
  {
    absl::MutexLock lock(&run_mu_);
    stopping_ = true;
  }
  if (table_ != nullptr) table_->Shutdown();
}

ShardStatus Shard::Status() const {
  ShardStatus status;
  {
    absl::MutexLock lock(&run_mu_);
    status.head_step = head_step_;
    status.run_id = run_.run_id;
    const auto epoch = run_epochs_.find(run_.run_id);
    status.run_epoch = epoch == run_epochs_.end() ? 0 : epoch->second;
    status.resident_bytes = pushed_bytes_;
  }
  status.table = table_->GetStats();
  status.touched_blocks = status.table.blocks;
  status.resident_bytes += status.table.resident_bytes + generated_.bytes() + version_payloads_.bytes() + buffers_->idle_bytes();
  status.versions = checkpoints_->ListVersions();
  status.durable_steps = options_.durability == Durability::kStep;
  return status;
}

absl::Status Shard::CheckInSpec(BlockId id) const {
  if (spec_.Contains(id)) return absl::OkStatus();
  if (id.level < 1 || id.level > spec_.depth())
    return InvalidArgument("block {}: level {} is not in the bank, allowed 1..{}", ToString(id), id.level, spec_.depth());
  if (spec_.width(id.level) == 0) return InvalidArgument("block {}: level {} has width 0, it has no blocks", ToString(id), id.level);
  const uint32_t generic = ClusterCount(spec_.fan_out, id.level);
  return InvalidArgument("block {}: cluster {} is not in level {}, allowed 0..{} and {} for the generic block", ToString(id), id.cluster,
                         id.level, generic - 1, generic);
}

absl::Status Shard::CheckBlock(BlockId id) const {
  RETURN_IF_ERROR(CheckInSpec(id));
  return ownership_.Check(id);
}

absl::Status Shard::CheckNoReplica() const {
  if (options_.replica_of.empty()) return absl::OkStatus();
  return FailedPrecondition("server \"{}\" is a replica of \"{}\": it serves published versions only; ask the owner for the head", options_.server_id,
                            options_.replica_of);
}

absl::StatusOr<BlockRead> Shard::Read(BlockId id, int64_t newer_than, ReadFrom from) {
  RETURN_IF_ERROR(CheckNoReplica());
  RETURN_IF_ERROR(CheckBlock(id));
  if (newer_than >= 0) {
    const uint64_t version = table_->VersionOf(id);
    RETURN_IF_ERROR(ownership_.Check(id));  // again: its slot may just have been given up, and its blocks with it
    if (version == static_cast<uint64_t>(newer_than)) return BlockRead{version, 0, nullptr, true};
  }
  if (from == ReadFrom::kRam) {
    const auto resident = table_->ReadResident(id);
    return resident.has_value() ? AnswerRead(*resident, newer_than) : BlockRead{.elsewhere = true};
  }
  absl::StatusOr<CachedPayload> payload = table_->Read(id);
  if (!payload.ok()) return Annotate(payload.status(), fmt::format("the head of server \"{}\"", options_.server_id));
  if (payload->payload == nullptr) {
    RETURN_IF_ERROR(ownership_.Check(id));
    payload = ReadUntouched(id);
  }
  return AnswerRead(*payload, newer_than);
}

absl::Status Shard::Prefetch(absl::Span<const BlockId> ids) {
  for (const BlockId id : ids) RETURN_IF_ERROR(CheckBlock(id));
  table_->Prefetch(ids);
  return absl::OkStatus();
}

absl::StatusOr<BlockRead> Shard::ReadVersion(const std::string& name, BlockId id, int64_t newer_than, ReadFrom from) {
  RETURN_IF_ERROR(CheckBlock(id));
  ASSIGN_OR_RETURN(const CheckpointStore::Version version, checkpoints_->FindVersion(name));
  if (!version.held.slots[SlotOf(id)])
    return FailedPrecondition("block {} of version {}: slot {} is not in this server's copy, which holds slots {} by slot map epoch {}", ToString(id),
                              name, SlotOf(id), FormatSlots(version.held.slots), version.held.epoch);
  ASSIGN_OR_RETURN(BlockRead read, ReadStoredVersion(version, id, newer_than, from));
  read.type = version.payload;
  return read;
}

absl::StatusOr<BlockRead> Shard::ReadStoredVersion(const CheckpointStore::Version& version, BlockId id, int64_t newer_than, ReadFrom from) {
  const std::string& name = version.name;
  if (const auto cached = version_payloads_.Get({name, id})) return AnswerRead(*cached, newer_than);
  if (from == ReadFrom::kRam) return BlockRead{.elsewhere = true};
  CachedPayload stored;
  absl::Status decoded;
  const absl::Status got = version.weights->Get(BlockKey(id), [&](absl::Span<const uint8_t> value) {
    const absl::StatusOr<WeightsRecord> record = DecodeWeights(value, PayloadBytes(spec_, id.level, version.payload));
    decoded = record.status();
    if (!record.ok()) return;
    Buffer payload = buffers_->Acquire(record->payload.size());
    std::copy(record->payload.begin(), record->payload.end(), payload.data());
    stored = {record->version, record->crc32c, buffers_->Share(std::move(payload))};
  });
  if (absl::IsNotFound(got)) return newer_than == 0 ? AnswerRead({}, 0) : AnswerRead(ReadUntouched(id, version.payload), newer_than);
  const absl::Status status = got.ok() ? decoded : got;
  if (!status.ok()) return Annotate(status, fmt::format("block {} of version {} in {}/versions", ToString(id), name, options_.data_directory));
  version_payloads_.Put({name, id}, stored);
  // Purged while it was read: then the purge may have cleared the cache before this payload came.
  if (const auto now = checkpoints_->FindVersion(name); !now.ok() || now->weights != version.weights) version_payloads_.Clear();
  return AnswerRead(stored, newer_than);
}

BlockRead Shard::AnswerRead(const CachedPayload& payload, int64_t newer_than) {
  if (newer_than >= 0 && payload.version == static_cast<uint64_t>(newer_than)) return {payload.version, payload.crc32c, nullptr, true};
  return {payload.version, payload.crc32c, payload.payload, false};
}

CachedPayload Shard::ReadUntouched(BlockId id, PayloadType type) {
  const PayloadCache::Key key{type == PayloadType::kBank ? "" : "as int8", id};
  if (const auto cached = generated_.Get(key)) return *cached;
  Buffer payload = buffers_->Acquire(spec_.BlockBytes(id.level));
  InitBlockPayload(spec_, id, payload.span());
  if (type == PayloadType::kI8Rows) {
    Buffer smaller = buffers_->Acquire(PayloadBytes(spec_, id.level, type));
    (void)QuantisePayload(spec_, id.level, std::as_const(payload).span(), smaller.span());  // initial values are finite
    std::swap(payload, smaller);
    buffers_->Release(std::move(smaller));
  }
  const uint32_t crc = Crc32c(payload.data(), payload.size());
  const CachedPayload generated{0, crc, buffers_->Share(std::move(payload))};
  generated_.Put(key, generated);
  return generated;
}

absl::Status Shard::WaitForStep(uint64_t min_step, absl::Time deadline) {
  absl::MutexLock lock(&run_mu_);
  const auto reached = [&]() ABSL_SHARED_LOCKS_REQUIRED(run_mu_) { return stopping_ || head_step_ >= min_step; };
  if (!run_mu_.AwaitWithDeadline(absl::Condition(&reached), deadline))
    return DeadlineExceeded("step {} was not applied within the deadline; the head of server \"{}\" is at step {}: {}", min_step,
                            options_.server_id, head_step_, WhyHeadWaits());
  if (head_step_ >= min_step) return absl::OkStatus();
  return Unavailable("server \"{}\" is shutting down", options_.server_id);
}

absl::Status Shard::CheckFreeSpace(uint64_t needed_bytes) const {
  ASSIGN_OR_RETURN(const uint64_t free_bytes, FreeBytes(options_.data_directory));
  if (free_bytes >= options_.min_free_bytes + needed_bytes) return absl::OkStatus();
  return ResourceExhausted("the file system of {} has {} bytes free, {} are needed and {} must stay free; free space and try again, reads go on",
                           options_.data_directory, free_bytes, needed_bytes, options_.min_free_bytes);
}

}  // namespace membank
