#include "common/client/memory_client.h"

#include <algorithm>
#include <atomic>
#include <functional>

#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/bank/gradient_codec.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "common/client/block_streams.h"
#include "common/client/peer_call.h"
#include "common/client/retry.h"
#include "common/client/topology.h"
#include "common/client/version_list.h"
#include "common/rpc/status.h"
#include "common/rpc/training_wire.h"
#include "common/rpc/wire.h"
#include "grpcpp/client_context.h"

namespace membank {
namespace {

// Requests below this stay on one stream: another one costs more than it brings.
constexpr uint64_t kSplitBytes = 1 << 20;
constexpr absl::Duration kLeastPatience = absl::Seconds(1);      // with a server that has replicas
constexpr double kSlowestBytesPerSecond = 50e6;                  // and more for what it has to send
constexpr absl::Duration kAskReplicasFirst = absl::Seconds(10);  // after it did not answer
constexpr absl::Duration kConnectSlice = absl::Milliseconds(500);  // between two looks at the slot map while a server is away

using Topology = std::shared_ptr<const MemoryTopology>;

void ToProto(const StepId& step, v1::StepId* out) {
  out->set_run_id(step.run_id);
  out->set_epoch(step.epoch);
  out->set_step(step.step);
}

class RpcMemoryClient final : public MemoryClient {
 public:
  RpcMemoryClient(const MemoryClientOptions& options, Topology topology) : options_(options), topology_(std::move(topology)) {}

  absl::Status Meet();

  const BankSpec& spec() const override { return spec_; }
  absl::StatusOr<BankStatus> GetStatus() override;
  absl::StatusOr<std::vector<std::string>> ListVersions(std::chrono::milliseconds timeout) override;

  absl::Status Fetch(absl::Span<BlockFetch> blocks, const FetchOptions& options) override;
  absl::Status Prefetch(absl::Span<const BlockId> ids) override;
  absl::Status BeginRun(const RunSettings& settings) override;
  absl::Status Push(const StepId& step, uint32_t rank, absl::Span<const BlockGradient> gradients, absl::Span<const double> sums) override;
  absl::StatusOr<double> PrepareStep(const StepId& step, std::chrono::milliseconds timeout) override;
  absl::Status ApplyStep(const StepId& step, const ApplyParameters& parameters) override;
  absl::StatusOr<std::vector<double>> AwaitStep(const StepId& step, std::chrono::milliseconds timeout) override;
  absl::StatusOr<JoinedRun> JoinRun(const RunMember& member, std::chrono::milliseconds timeout) override;

  absl::Status SnapshotCheckpoint(const std::string& id, uint64_t step) override {
    return Checkpoint(v1::CHECKPOINT_ACTION_SNAPSHOT, id, step).status();
  }
  absl::Status PrepareCheckpoint(const std::string& id, uint64_t step) override {
    return Checkpoint(v1::CHECKPOINT_ACTION_PREPARE, id, step).status();
  }
  absl::Status CommitCheckpoint(const std::string& id, uint32_t keep) override {
    return Checkpoint(v1::CHECKPOINT_ACTION_COMMIT, id, 0, keep).status();
  }
  absl::Status AbortCheckpoint(const std::string& id) override { return Checkpoint(v1::CHECKPOINT_ACTION_ABORT, id, 0).status(); }
  absl::Status DeleteCheckpoint(const std::string& id) override { return Checkpoint(v1::CHECKPOINT_ACTION_DELETE, id, 0).status(); }
  absl::Status RestoreCheckpoint(const std::string& id) override { return Checkpoint(v1::CHECKPOINT_ACTION_RESTORE, id, 0).status(); }
  absl::Status Rewind(uint64_t step) override { return Checkpoint(v1::CHECKPOINT_ACTION_REWIND, "", step).status(); }
  absl::StatusOr<std::vector<CheckpointInfo>> ListCheckpoints() override;
  absl::Status Publish(const std::string& checkpoint_id, const std::string& version, PayloadType payload) override;

  ClientTraffic traffic() const override;

 private:
  Topology CurrentTopology() const ABSL_LOCKS_EXCLUDED(mu_);
  bool ReloadTopology(const Topology& used) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status WithTopology(absl::Time deadline, const std::function<absl::Status(const Topology&)>& call) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Retry(const Topology& topology, const MemoryPeer& peer, size_t channel, absl::Time deadline,
                     absl::FunctionRef<absl::Status(bool wait)> call) ABSL_LOCKS_EXCLUDED(mu_);
  template <typename Request, typename Reply>
  absl::Status CallPeer(const Topology& topology, size_t peer, absl::Time deadline, bool retry,
                        grpc::Status (v1::MemoryService::Stub::*method)(grpc::ClientContext*, const Request&, Reply*), const Request& request,
                        Reply* reply) {
    const MemoryPeer& to = topology->peers[peer];
    if (!retry) return CallOnce(to, deadline, false, method, request, reply);
    return Retry(topology, to, 0, deadline, [&](bool wait) { return CallOnce(to, deadline, wait, method, request, reply); });
  }
  uint64_t EpochOf(const Topology& topology) const { return options_.slot_map_path.empty() ? 0 : topology->slot_map.epoch(); }
  absl::Time Deadline() const { return absl::Now() + absl::FromChrono(options_.call_timeout); }

  struct Met {
    Topology topology;
    std::vector<v1::Manifest> manifests;  // of its peers, checked
  };
  absl::StatusOr<Met> AskAll(absl::Time deadline);
  absl::Status CheckManifests(const Topology& topology, const std::vector<v1::Manifest>& manifests) const;
  absl::Status CheckBlock(BlockId id, size_t bytes, uint64_t expected) const;
  absl::Status PushOnce(const Topology& topology, const StepId& step, uint32_t rank, absl::Span<const BlockGradient> gradients,
                        absl::Span<const double> sums, absl::Time deadline);
  absl::Status FetchOnce(const Topology& topology, std::vector<FetchTask>& tasks, const v1::FetchBlocksRequest& common, absl::Time deadline);
  absl::Status FetchPart(const Topology& topology, const MemoryPeer& peer, size_t channel, const std::vector<FetchTask*>& tasks,
                         const v1::FetchBlocksRequest& common, absl::Time deadline);
  absl::Status FetchReplicated(const MemoryPeer& peer, size_t channel, const std::vector<FetchTask*>& tasks,
                               const v1::FetchBlocksRequest& common, absl::Time deadline);
  absl::StatusOr<std::vector<v1::CheckpointReply>> Checkpoint(v1::CheckpointAction action, const std::string& id, uint64_t step, uint32_t keep = 0);

  const MemoryClientOptions options_;
  BankSpec spec_;          // set by Meet, then constant
  std::string spec_hash_;

  mutable absl::Mutex mu_;
  Topology topology_ ABSL_GUARDED_BY(mu_);
  std::atomic<uint64_t> fetched_bytes_{0}, pushed_bytes_{0}, fetched_blocks_{0}, unchanged_blocks_{0};
};

// --- Meeting ------------------------------------------------------------------------------------------------------------------

Topology RpcMemoryClient::CurrentTopology() const {
  absl::MutexLock lock(&mu_);
  return topology_;
}

// True when there is a newer topology than `used`.
bool RpcMemoryClient::ReloadTopology(const Topology& used) {
  if (options_.slot_map_path.empty()) return false;
  auto loaded = MemoryTopology::Load(options_, used);
  if (!loaded.ok()) {
    LOG_WARN("the slot map stays at epoch {}: {}", used->slot_map.epoch(), loaded.status().ToString());
    return false;
  }
  absl::MutexLock lock(&mu_);
  if ((*loaded)->slot_map.epoch() > topology_->slot_map.epoch()) topology_ = *loaded;
  return topology_->slot_map.epoch() > used->slot_map.epoch();
}

// Runs `call`, and again with a newer topology as long as a server follows another slot map: slots are changing hands, and the map, the
// servers and this client learn of it one after the other.
absl::Status RpcMemoryClient::WithTopology(absl::Time deadline, const std::function<absl::Status(const Topology&)>& call) {
  absl::Duration pause = absl::Milliseconds(10);
  while (true) {
    const Topology topology = CurrentTopology();
    const absl::Status status = call(topology);
    if (!WrongSlotEpoch(status) || options_.slot_map_path.empty()) return status;
    if (ReloadTopology(topology)) continue;
    if (absl::Now() + pause >= deadline) return status;
    absl::SleepFor(pause);
    pause = std::min(pause * 2, absl::Milliseconds(200));
  }
}

// The server is away and the slot map changed: go by the newer one.
absl::Status Moved(const Topology& topology, const MemoryPeer& peer) {
  absl::Status moved = FailedPrecondition("{} is away and the slot map changed", peer.name);
  AddWrongSlot(peer.id, topology->slot_map.epoch(), BlockId{}, &moved);
  return moved;
}

// While the server is away; a newer slot map ends it, too, with a wrong slot: the server may have left.
absl::Status RpcMemoryClient::Retry(const Topology& topology, const MemoryPeer& peer, size_t channel, absl::Time deadline,
                                    absl::FunctionRef<absl::Status(bool wait)> call) {
  return RetryWhileUnavailable(deadline, [&](bool wait) {
    if (!wait) return call(false);
    if (ReloadTopology(topology)) return Moved(topology, peer);
    const absl::Time connected = std::min(deadline, absl::Now() + kConnectSlice);
    if (!peer.channels[channel]->WaitForConnected(absl::ToChronoTime(connected))) return Unavailable("{} cannot be reached", peer.name);
    return call(true);
  });
}

absl::StatusOr<RpcMemoryClient::Met> RpcMemoryClient::AskAll(absl::Time deadline) {
  Met met;
  RETURN_IF_ERROR(WithTopology(deadline, [&](const Topology& used) -> absl::Status {
    met = {used, std::vector<v1::Manifest>(used->peers.size())};
    RETURN_IF_ERROR(InParallel(met.manifests.size(), [&](size_t i) {
      return CallPeer(used, i, deadline, true, &v1::MemoryService::Stub::GetManifest, v1::GetManifestRequest(), &met.manifests[i]);
    }));
    return CheckManifests(used, met.manifests);
  }));
  return met;
}

absl::Status RpcMemoryClient::CheckManifests(const Topology& topology, const std::vector<v1::Manifest>& manifests) const {
  for (size_t i = 0; i < manifests.size(); ++i) {
    const v1::Manifest& manifest = manifests[i];
    const MemoryPeer& peer = topology->peers[i];
    if (manifest.wire_version() != kWireVersion) {
      return FailedPrecondition("{} speaks wire version {}, this client {}; use the same release on both", peer.name, manifest.wire_version(),
                                kWireVersion);
    }
    if (manifest.spec_hash() != manifests[0].spec_hash()) {
      return FailedPrecondition("{} holds the bank {} but {} holds {}; all servers of a slot map must hold one bank", peer.name,
                                manifest.spec_hash(), topology->peers[0].name, manifests[0].spec_hash());
    }
    if (!options_.expected_spec_hash.empty() && manifest.spec_hash() != options_.expected_spec_hash) {
      return FailedPrecondition("{} holds the bank with spec hash {}, but {} is expected", peer.name, manifest.spec_hash(),
                                options_.expected_spec_hash);
    }
    if (!peer.id.empty() && manifest.server_id() != peer.id) {
      return FailedPrecondition("{} calls itself '{}'; the slot map's addresses are mixed up", peer.name, manifest.server_id());
    }
    if (manifest.slot_map_epoch() != topology->slot_map.epoch()) {
      absl::Status status = FailedPrecondition("{} follows slot map epoch {}, this client epoch {}; give both the same slot map", peer.name,
                                               manifest.slot_map_epoch(), topology->slot_map.epoch());
      AddWrongSlot(manifest.server_id(), manifest.slot_map_epoch(), BlockId{}, &status);
      return status;
    }
  }
  return absl::OkStatus();
}

absl::Status RpcMemoryClient::Meet() {
  ASSIGN_OR_RETURN(const Met met, AskAll(absl::Now() + absl::FromChrono(options_.connect_timeout)));
  const v1::Manifest& first = met.manifests[0];
  ASSIGN_OR_RETURN(spec_, FromProto(first.spec()));
  spec_hash_ = spec_.Hash();
  if (spec_hash_ != first.spec_hash()) {
    return FailedPrecondition("{} hashes its bank spec to {}, this client to {}; use the same release on both", met.topology->peers[0].name,
                              first.spec_hash(), spec_hash_);
  }
  return absl::OkStatus();
}

absl::StatusOr<BankStatus> RpcMemoryClient::GetStatus() {
  ASSIGN_OR_RETURN(const Met met, AskAll(Deadline()));
  BankStatus status;
  status.spec = spec_;
  status.slot_map_epoch = met.topology->slot_map.epoch();
  status.head_step = met.manifests[0].head_step();
  status.durable_steps = true;
  std::map<std::pair<std::string, PayloadType>, size_t> holders;
  for (const v1::Manifest& manifest : met.manifests) {
    status.head_step = std::min(status.head_step, manifest.head_step());
    status.durable_steps = status.durable_steps && manifest.durable_steps();
    if (manifest.run_epoch() >= status.run_epoch && !manifest.run_id().empty()) {
      status.run_id = manifest.run_id();
      status.run_epoch = manifest.run_epoch();
    }
    status.touched_blocks += manifest.touched_blocks();
    status.resident_bytes += manifest.resident_bytes();
    for (const v1::BankVersion& version : manifest.versions()) {
      ASSIGN_OR_RETURN(const PayloadType payload, FromProto(version.payload()));
      ++holders[{version.name(), payload}];
    }
  }
  for (const auto& [version, count] : holders) {
    if (count == met.manifests.size()) status.versions.push_back({version.first, version.second});
  }
  return status;
}

absl::StatusOr<std::vector<std::string>> RpcMemoryClient::ListVersions(std::chrono::milliseconds timeout) {
  ReloadTopology(CurrentTopology());  // a server may have joined or left since the last fetch
  return VersionsOnAll(*CurrentTopology(), absl::Now() + absl::FromChrono(timeout));
}

// --- Fetch --------------------------------------------------------------------------------------------------------------------

absl::Status RpcMemoryClient::CheckBlock(BlockId id, size_t bytes, uint64_t expected) const {
  if (!spec_.Contains(id)) {
    return InvalidArgument("block {} is not in bank '{}': levels 1 to {} with a width above 0, clusters 0 to k^level (k = {})", ToString(id),
                           spec_.bank_id, spec_.depth(), spec_.fan_out);
  }
  if (bytes != expected) return InvalidArgument("the buffer of block {} has {} bytes; it must have {}", ToString(id), bytes, expected);
  return absl::OkStatus();
}

absl::Status RpcMemoryClient::Fetch(absl::Span<BlockFetch> blocks, const FetchOptions& options) {
  std::vector<FetchTask> tasks;
  for (BlockFetch& block : blocks) {
    RETURN_IF_ERROR(CheckBlock(block.id, block.destination.size(), spec_.Contains(block.id) ? spec_.BlockBytes(block.id.level) : 0));
    block.version = 0;
    block.unchanged = false;
    block.blocked = false;
    block.payload = PayloadType::kBank;
    tasks.push_back({&block, options.int8 ? PayloadBytes(spec_, block.id.level, PayloadType::kI8Rows) : 0});
  }
  v1::FetchBlocksRequest common;
  common.set_bank_version(options.bank_version);
  common.set_min_step(options.min_step);
  common.set_spec_hash(spec_hash_);
  const absl::Time deadline = absl::Now() + absl::FromChrono(options.timeout);
  return WithTopology(deadline, [&](const Topology& topology) { return FetchOnce(topology, tasks, common, deadline); });
}

// Every server in parallel, each over its channels, blocks spread by size.
absl::Status RpcMemoryClient::FetchOnce(const Topology& topology, std::vector<FetchTask>& tasks, const v1::FetchBlocksRequest& common,
                                        absl::Time deadline) {
  struct Part {
    size_t peer, channel;
    uint64_t bytes = 0;
    std::vector<FetchTask*> tasks;
  };
  const size_t streams = static_cast<size_t>(options_.channels_per_server);
  std::vector<Part> parts(topology->peers.size() * streams);
  for (size_t i = 0; i < parts.size(); ++i) parts[i] = {i / streams, i % streams};
  for (FetchTask& task : tasks) {
    if (task.done) continue;
    Part* const first = &parts[topology->slot_map.OwnerOf(task.block->id) * streams];
    Part* part = first;
    if (first->bytes >= kSplitBytes) {
      part = std::min_element(first, first + streams, [](const Part& a, const Part& b) { return a.bytes < b.bytes; });
    }
    if (part->tasks.size() == kMaxBlocksPerCall) {
      return InvalidArgument("the fetch has {} blocks; at most {} per connection are allowed", tasks.size(), kMaxBlocksPerCall);
    }
    part->tasks.push_back(&task);
    part->bytes += task.block->destination.size();
  }
  std::erase_if(parts, [](const Part& part) { return part.tasks.empty(); });
  return InParallel(parts.size(), [&](size_t i) {
    return FetchPart(topology, topology->peers[parts[i].peer], parts[i].channel, parts[i].tasks, common, deadline);
  });
}

absl::Status RpcMemoryClient::FetchPart(const Topology& topology, const MemoryPeer& peer, size_t channel, const std::vector<FetchTask*>& tasks,
                                        const v1::FetchBlocksRequest& common, absl::Time deadline) {
  const bool replicated = !peer.replicas.empty() && !common.bank_version().empty();
  const auto fetch = [&] {
    if (!replicated)
      return Retry(topology, peer, channel, deadline, [&](bool wait) { return RunFetchStream(*peer.channels[channel], common, tasks, deadline, wait); });
    return RetryWhileUnavailable(deadline, [&](bool wait) {
      return wait && ReloadTopology(topology) ? Moved(topology, peer) : FetchReplicated(peer, channel, tasks, common, deadline);
    });
  };
  const auto corrupt = [&]() -> const FetchTask* {
    for (const FetchTask* task : tasks) {
      if (!task->done && task->corrupt) return task;
    }
    return nullptr;
  };
  absl::Status status = fetch();
  if (status.ok() && corrupt()) {
    LOG_WARN("{}: block {} arrived with a wrong checksum; fetching it once more", peer.name, ToString(corrupt()->block->id));
    status = fetch();
  }
  if (!status.ok()) return Annotate(status, peer.name);
  if (const FetchTask* task = corrupt()) {
    return DataLoss("{}: block {} arrived twice with a payload that does not match its CRC32C; check the server's memory and the network",
                    peer.name, ToString(task->block->id));
  }
  for (const FetchTask* task : tasks) {
    ++(task->block->unchanged ? unchanged_blocks_ : fetched_blocks_);
    if (!task->block->unchanged && !task->block->blocked) fetched_bytes_ += PayloadBytes(spec_, task->block->id.level, task->block->payload);
  }
  return absl::OkStatus();
}

absl::Status RpcMemoryClient::Prefetch(absl::Span<const BlockId> ids) {
  const Topology topology = CurrentTopology();
  std::vector<v1::PrefetchRequest> requests(topology->peers.size());
  for (const BlockId id : ids) {
    RETURN_IF_ERROR(CheckBlock(id, 0, 0));
    v1::PrefetchRequest& request = requests[topology->slot_map.OwnerOf(id)];
    if (request.blocks_size() < static_cast<int>(kMaxBlocksPerCall)) ToProto(id, request.add_blocks());  // what is left out is read later
  }
  const absl::Time deadline = Deadline();
  return InParallel(requests.size(), [&](size_t i) -> absl::Status {
    if (requests[i].blocks_size() == 0) return absl::OkStatus();
    v1::PrefetchReply reply;
    return CallPeer(topology, i, deadline, false, &v1::MemoryService::Stub::Prefetch, requests[i], &reply);
  });
}

// From the owner, or, when it is away or does not answer in time, from whoever has a replica of the version.
absl::Status RpcMemoryClient::FetchReplicated(const MemoryPeer& peer, size_t channel, const std::vector<FetchTask*>& tasks,
                                              const v1::FetchBlocksRequest& common, absl::Time deadline) {
  std::string failures;
  const auto replicas_have_it = [&] {
    for (const MemoryReplica& replica : peer.replicas) {
      const absl::Status status = RunFetchStream(*replica.channel, common, tasks, deadline, /*wait=*/false);
      if (status.ok()) return true;
      failures += fmt::format("; {}: {}", replica.name, std::string(status.message()));
    }
    return false;
  };
  const bool was_away = peer.away_until->load() > absl::ToUnixMillis(absl::Now());
  if (was_away && replicas_have_it()) return absl::OkStatus();
  uint64_t bytes = 0;
  for (const FetchTask* task : tasks) bytes += task->block->destination.size();
  const absl::Time patience = std::min(deadline, absl::Now() + kLeastPatience + absl::Seconds(static_cast<double>(bytes) / kSlowestBytesPerSecond));
  const absl::Status owner = RunFetchStream(*peer.channels[channel], common, tasks, patience, /*wait=*/false);
  const bool silent = absl::IsUnavailable(owner) || absl::IsDeadlineExceeded(owner);
  peer.away_until->store(silent ? absl::ToUnixMillis(absl::Now() + kAskReplicasFirst) : 0);
  if (!silent) return owner;
  if (!was_away && replicas_have_it()) return absl::OkStatus();
  return Unavailable("{}{}", std::string(owner.message()), failures);
}

// --- Training -----------------------------------------------------------------------------------------------------------------

absl::Status RpcMemoryClient::BeginRun(const RunSettings& settings) {
  v1::BeginRunRequest request;
  ToProto(settings, &request);
  const absl::Time deadline = Deadline();
  return WithTopology(deadline, [&](const Topology& topology) {
    request.set_slot_map_epoch(EpochOf(topology));
    return InParallel(topology->peers.size(), [&](size_t i) {
      v1::BeginRunReply reply;
      return CallPeer(topology, i, deadline, true, &v1::MemoryService::Stub::BeginRun, request, &reply);
    });
  });
}

absl::Status RpcMemoryClient::Push(const StepId& step, uint32_t rank, absl::Span<const BlockGradient> gradients, absl::Span<const double> sums) {
  for (const BlockGradient& gradient : gradients) {
    const uint64_t expected = spec_.Contains(gradient.id) ? GradientBytes(gradient.dtype, ShapeOf(spec_, gradient.id.level)) : 0;
    RETURN_IF_ERROR(CheckBlock(gradient.id, gradient.bytes.size(), expected));
  }
  // A server that took its part by an older map than the others acknowledges it as a duplicate: nobody takes a block twice or by two maps.
  const absl::Time deadline = Deadline();
  return WithTopology(deadline, [&](const Topology& topology) { return PushOnce(topology, step, rank, gradients, sums, deadline); });
}

absl::Status RpcMemoryClient::PushOnce(const Topology& topology, const StepId& step, uint32_t rank, absl::Span<const BlockGradient> gradients,
                                       absl::Span<const double> sums, absl::Time deadline) {
  std::vector<std::vector<const BlockGradient*>> parts(topology->peers.size());
  for (const BlockGradient& gradient : gradients) parts[topology->slot_map.OwnerOf(gradient.id)].push_back(&gradient);
  v1::PushHeader header;
  header.set_run_id(step.run_id);
  header.set_epoch(step.epoch);
  header.set_step(step.step);
  header.set_rank(rank);
  header.mutable_sums()->Assign(sums.begin(), sums.end());
  header.set_spec_hash(spec_hash_);
  header.set_slot_map_epoch(EpochOf(topology));
  return InParallel(parts.size(), [&](size_t i) -> absl::Status {
    const MemoryPeer& peer = topology->peers[i];
    v1::PushAck ack;
    const auto push = [&](bool wait) -> absl::Status {
      ASSIGN_OR_RETURN(ack, RunPushStream(*peer.channels[0], header, parts[i], deadline, wait));
      return absl::OkStatus();
    };
    absl::Status status = Retry(topology, peer, 0, deadline, push);
    if (status.code() == absl::StatusCode::kDataLoss) {  // damaged on the way: nothing of it counted, so it may be sent once more
      LOG_WARN("{}: {}; pushing once more", peer.name, status.ToString());
      status = Retry(topology, peer, 0, deadline, push);
    }
    if (!status.ok()) return Annotate(status, peer.name);
    if (ack.result() == v1::PUSH_RESULT_STALE) {
      return FailedPrecondition("{}: the push of step {} by rank {} of run '{}' is stale; the head is at step {}", peer.name, step.step, rank,
                                step.run_id, ack.head_step());
    }
    for (const BlockGradient* gradient : parts[i]) pushed_bytes_ += gradient->bytes.size();
    return absl::OkStatus();
  });
}

absl::StatusOr<double> RpcMemoryClient::PrepareStep(const StepId& step, std::chrono::milliseconds timeout) {
  const absl::Time deadline = absl::Now() + absl::FromChrono(timeout);
  v1::PrepareStepRequest request;
  ToProto(step, request.mutable_step());
  std::vector<v1::PrepareStepReply> replies;
  RETURN_IF_ERROR(WithTopology(deadline, [&](const Topology& topology) {
    request.mutable_step()->set_slot_map_epoch(EpochOf(topology));
    replies.assign(topology->peers.size(), {});
    return InParallel(replies.size(), [&](size_t i) {
      return CallPeer(topology, i, deadline, true, &v1::MemoryService::Stub::PrepareStep, request, &replies[i]);
    });
  }));
  double sum = 0;  // in the slot map's order: the same bits on every rank
  for (const v1::PrepareStepReply& reply : replies) sum += reply.sum_of_squares();
  return sum;
}

absl::Status RpcMemoryClient::ApplyStep(const StepId& step, const ApplyParameters& parameters) {
  const absl::Time deadline = Deadline();
  v1::ApplyStepRequest request;
  ToProto(step, request.mutable_step());
  request.set_scale(parameters.scale);
  request.set_learning_rate(parameters.learning_rate);
  request.set_weight_decay(parameters.weight_decay);
  return WithTopology(deadline, [&](const Topology& topology) {
    request.mutable_step()->set_slot_map_epoch(EpochOf(topology));
    return InParallel(topology->peers.size(), [&](size_t i) {
      v1::ApplyStepReply reply;
      return CallPeer(topology, i, deadline, true, &v1::MemoryService::Stub::ApplyStep, request, &reply);
    });
  });
}

absl::StatusOr<std::vector<double>> RpcMemoryClient::AwaitStep(const StepId& step, std::chrono::milliseconds timeout) {
  const absl::Time deadline = absl::Now() + absl::FromChrono(timeout);
  v1::AwaitStepRequest request;
  ToProto(step, request.mutable_step());
  std::vector<v1::AwaitStepReply> replies;
  RETURN_IF_ERROR(WithTopology(deadline, [&](const Topology& topology) {
    request.mutable_step()->set_slot_map_epoch(EpochOf(topology));
    replies.assign(topology->peers.size(), {});
    return InParallel(replies.size(), [&](size_t i) {
      return CallPeer(topology, i, deadline, true, &v1::MemoryService::Stub::AwaitStep, request, &replies[i]);
    });
  }));
  return std::vector<double>(replies[0].sums().begin(), replies[0].sums().end());
}

absl::StatusOr<JoinedRun> RpcMemoryClient::JoinRun(const RunMember& member, std::chrono::milliseconds timeout) {
  v1::JoinRunRequest request;
  request.set_rank(member.rank);
  request.set_world_size(member.world_size);
  request.set_member_id(member.member_id);
  request.set_run_id(member.run_id);
  request.set_epoch(member.epoch);
  request.set_description(member.description);
  v1::JoinRunReply reply;
  RETURN_IF_ERROR(CallPeer(CurrentTopology(), 0, absl::Now() + absl::FromChrono(timeout), true, &v1::MemoryService::Stub::JoinRun,
                           request, &reply));
  return JoinedRun{reply.run_id(), reply.epoch(), reply.description()};
}

// --- Checkpoints --------------------------------------------------------------------------------------------------------------

absl::StatusOr<std::vector<v1::CheckpointReply>> RpcMemoryClient::Checkpoint(v1::CheckpointAction action, const std::string& id,
                                                                             uint64_t step, uint32_t keep) {
  const absl::Time deadline = Deadline();
  v1::CheckpointRequest request;
  request.set_action(action);
  request.set_id(id);
  request.set_step(step);
  request.set_keep(keep);
  std::vector<v1::CheckpointReply> replies;
  RETURN_IF_ERROR(WithTopology(deadline, [&](const Topology& topology) {
    request.set_slot_map_epoch(EpochOf(topology));
    replies.assign(topology->peers.size(), {});
    return InParallel(replies.size(), [&](size_t i) {
      return CallPeer(topology, i, deadline, action != v1::CHECKPOINT_ACTION_DELETE, &v1::MemoryService::Stub::Checkpoint, request,
                      &replies[i]);
    });
  }));
  return replies;
}

absl::StatusOr<std::vector<CheckpointInfo>> RpcMemoryClient::ListCheckpoints() {
  ASSIGN_OR_RETURN(std::vector<v1::CheckpointReply> replies, Checkpoint(v1::CHECKPOINT_ACTION_LIST, "", 0));
  std::vector<CheckpointInfo> common;
  for (const v1::CheckpointInfo& first : replies[0].checkpoints()) {
    CheckpointInfo info{first.id(), first.step(), first.committed()};
    size_t holders = 0;
    for (const v1::CheckpointReply& reply : replies) {
      for (const v1::CheckpointInfo& other : reply.checkpoints()) {
        if (other.id() != info.id || other.step() != info.step) continue;
        ++holders;
        info.committed = info.committed && other.committed();
      }
    }
    if (holders == replies.size()) common.push_back(std::move(info));
  }
  return common;
}

absl::Status RpcMemoryClient::Publish(const std::string& checkpoint_id, const std::string& version, PayloadType payload) {
  const absl::Time deadline = Deadline();
  v1::PublishRequest request;
  request.set_checkpoint_id(checkpoint_id);
  request.set_version(version);
  request.set_payload(membank::ToProto(payload));
  return WithTopology(deadline, [&](const Topology& topology) {
    request.set_slot_map_epoch(EpochOf(topology));
    return InParallel(topology->peers.size(), [&](size_t i) {
      v1::PublishReply reply;
      return CallPeer(topology, i, deadline, true, &v1::MemoryService::Stub::Publish, request, &reply);
    });
  });
}

ClientTraffic RpcMemoryClient::traffic() const { return {fetched_bytes_, pushed_bytes_, fetched_blocks_, unchanged_blocks_}; }

}  // namespace

absl::StatusOr<std::unique_ptr<MemoryClient>> MemoryClient::Connect(const MemoryClientOptions& options) {
  ASSIGN_OR_RETURN(Topology topology, MemoryTopology::Load(options));
  auto client = std::make_unique<RpcMemoryClient>(options, std::move(topology));
  RETURN_IF_ERROR(client->Meet());
  return client;
}

}  // namespace membank
