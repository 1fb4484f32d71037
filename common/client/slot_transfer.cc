#include "common/client/slot_transfer.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "common/base/log.h"
#include "common/base/random_id.h"
#include "common/base/status_macros.h"
#include "common/client/peer_call.h"
#include "common/client/topology.h"
#include "common/rpc/channel.h"
#include "common/rpc/slot_map_location.h"
#include "common/rpc/wire.h"
#include "membank/v1/memory.grpc.pb.h"

namespace membank {
namespace {

constexpr absl::Duration kCallTimeout = absl::Seconds(10);
constexpr absl::Duration kReloadTimeout = absl::Minutes(10); // what a server adopts may wait for a checkpoint that is being written
constexpr absl::Duration kCopyTimeout = absl::Hours(12);
constexpr absl::Duration kFenceTimeout = absl::Seconds(10);  // for the steps before the fence to be applied
constexpr uint64_t kLittle = 64 << 20;                       // bytes: less is copied behind the fence
constexpr int kMostRounds = 8;
constexpr absl::Duration kFencing = absl::Minutes(10);        // checkpoints being written and long steps may lift the fence so long

absl::StatusOr<MemoryPeer> Connect(const SlotServer& server, const TlsFiles& tls) {
  ChannelOptions options;
  options.tls = tls;
  MemoryPeer peer;
  peer.name = fmt::format("memory server {} at {}", server.id, server.address);
  peer.id = server.id;
  ASSIGN_OR_RETURN(peer.channels, MakeChannels(server.address, options));
  peer.stub = v1::MemoryService::NewStub(peer.channels[0]);
  return peer;
}

absl::StatusOr<v1::SlotsReply> SlotsAt(const MemoryPeer& peer) {
  v1::SlotsReply reply;
  RETURN_IF_ERROR(CallOnce(peer, absl::Now() + kCallTimeout, true, &v1::MemoryService::Stub::GetSlots, v1::GetSlotsRequest(), &reply));
  return reply;
}

absl::StatusOr<v1::Manifest> ManifestOf(const MemoryPeer& peer) {
  v1::Manifest manifest;
  RETURN_IF_ERROR(CallOnce(peer, absl::Now() + kCallTimeout, true, &v1::MemoryService::Stub::GetManifest, v1::GetManifestRequest(), &manifest));
  return manifest;
}

absl::StatusOr<v1::MoveSlotsReply> MoveAt(const MemoryPeer& peer, v1::MoveSlotsRequest request, v1::SlotMoveAction action,
                                          absl::Duration timeout = kCallTimeout) {
  v1::MoveSlotsReply reply;
  request.set_action(action);
  RETURN_IF_ERROR(CallOnce(peer, absl::Now() + timeout, false, &v1::MemoryService::Stub::MoveSlots, request, &reply));
  return reply;
}

std::string NewMoveId() { return fmt::format("move-{:016x}", RandomId()); }

class RpcSlotTransfers final : public SlotTransfers {
 public:
  RpcSlotTransfers(const SlotTransferOptions& options, std::unique_ptr<SlotMapSource> source)
      : options_(options), source_(std::move(source)) {}

  absl::StatusOr<SlotMap> Map() override { return source_->Load(); }
  absl::StatusOr<std::vector<uint64_t>> SlotBytes() override;
  absl::StatusOr<SlotTransferResult> Move(const SlotTransfer& transfer, absl::Span<const std::string> leave) override;

 private:
  struct Stage {  // what a move works with
    v1::MoveSlotsRequest request;  // move id, slots and source; the action differs
    MemoryPeer from, to;
    std::vector<MemoryPeer> others;
    bool to_is_listed = false;     // else it joins, and has no steps to fence
    bool durable_steps = false;    // of the old owner
    SlotTransferResult result;
  };

  absl::Status CheckServers(Stage* stage, const SlotTransfer& transfer) const;
  absl::Status Copy(Stage* stage, v1::SlotMoveAction action);
  absl::Status CatchUp(Stage* stage);
  absl::Status FenceAndSwitch(Stage* stage, const SlotMap& next);
  absl::StatusOr<uint64_t> Seal(const Stage& stage, uint64_t at_least) const;
  absl::Status AwaitOthers(const Stage& stage, uint64_t step) const;
  void Both(const Stage& stage, v1::SlotMoveAction action) const;
  void Report(const std::string& stage) const {
    if (options_.report) options_.report(stage);
  }

  const SlotTransferOptions options_;
  const std::unique_ptr<SlotMapSource> source_;
};

absl::StatusOr<std::vector<uint64_t>> RpcSlotTransfers::SlotBytes() {
  ASSIGN_OR_RETURN(const SlotMap map, source_->Load());
  std::vector<uint64_t> bytes(kSlots);
  uint64_t total = 0;
  for (size_t server = 0; server < map.servers().size(); ++server) {
    ASSIGN_OR_RETURN(const MemoryPeer peer, Connect(map.servers()[server], options_.tls));
    ASSIGN_OR_RETURN(const v1::SlotsReply reply, SlotsAt(peer));
    if (reply.slot_bytes_size() != static_cast<int>(kSlots))
      return Internal("server {} says what {} slots hold, there are {}", map.servers()[server].id, reply.slot_bytes_size(), kSlots);
    for (uint32_t slot = 0; slot < kSlots; ++slot)
      if (map.OwnerOfSlot(slot) == server) total += bytes[slot] = reply.slot_bytes(slot);
  }
  if (total > 0) return bytes;
  ASSIGN_OR_RETURN(const MemoryPeer first, Connect(map.servers()[0], options_.tls));
  ASSIGN_OR_RETURN(const v1::Manifest manifest, ManifestOf(first));
  ASSIGN_OR_RETURN(const BankSpec spec, FromProto(manifest.spec()));
  return SlotBytesOf(spec);
}

absl::Status RpcSlotTransfers::CheckServers(Stage* stage, const SlotTransfer& transfer) const {
  ASSIGN_OR_RETURN(const v1::Manifest old_owner, ManifestOf(stage->from));
  ASSIGN_OR_RETURN(const v1::Manifest new_owner, ManifestOf(stage->to));
  if (old_owner.wire_version() != kWireVersion || new_owner.wire_version() != kWireVersion)
    return FailedPrecondition("servers {} and {} speak wire versions {} and {}, this program {}; use the same release on all", transfer.from,
                              transfer.to.id, old_owner.wire_version(), new_owner.wire_version(), kWireVersion);
  if (old_owner.spec_hash() != new_owner.spec_hash())
    return FailedPrecondition("server {} holds the bank {}, server {} the bank {}; slots move within one bank", transfer.from, old_owner.spec_hash(),
                              transfer.to.id, new_owner.spec_hash());
  if (new_owner.server_id() != transfer.to.id)
    return FailedPrecondition("the server at {} calls itself \"{}\", not \"{}\"", transfer.to.address, new_owner.server_id(), transfer.to.id);
  stage->durable_steps = old_owner.durable_steps();
  return absl::OkStatus();
}

absl::Status RpcSlotTransfers::Copy(Stage* stage, v1::SlotMoveAction action) {
  ASSIGN_OR_RETURN(const v1::MoveSlotsReply reply, MoveAt(stage->to, stage->request, action, kCopyTimeout));
  stage->result.blocks += reply.blocks();
  stage->result.bytes += reply.bytes();
  Report(fmt::format("{}: {} blocks of the head, {:.1f} MB", action == v1::SLOT_MOVE_ACTION_FINISH ? "behind the fence" : "copied", reply.blocks(),
                     reply.bytes() / 1e6));
  return absl::OkStatus();
}

// Until a round finds little, or no less than the round before.
absl::Status RpcSlotTransfers::CatchUp(Stage* stage) {
  uint64_t before = UINT64_MAX;
  for (int round = 0; round < kMostRounds; ++round) {
    const uint64_t sum = stage->result.bytes;
    const absl::Status copied = Copy(stage, v1::SLOT_MOVE_ACTION_COPY);
    if (absl::IsAborted(copied)) continue;  // the old owner went back to a checkpoint meanwhile: anew
    RETURN_IF_ERROR(copied);
    const uint64_t bytes = stage->result.bytes - sum;
    if (bytes <= kLittle || bytes >= before) return absl::OkStatus();
    before = bytes;
  }
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> RpcSlotTransfers::Seal(const Stage& stage, uint64_t at_least) const {
  v1::MoveSlotsRequest request = stage.request;
  request.set_lease_ms(absl::ToInt64Milliseconds(options_.lease));
  request.set_at_least_step(at_least);
  // The later one's fence holds for both: pushes of a step go to all servers or, in the end, to none by this map.
  for (const MemoryPeer* peer : {&stage.from, stage.to_is_listed ? &stage.to : nullptr, &stage.from}) {
    if (peer == nullptr) continue;
    ASSIGN_OR_RETURN(const v1::MoveSlotsReply reply, MoveAt(*peer, request, v1::SLOT_MOVE_ACTION_SEAL));
    request.set_at_least_step(reply.first_refused_step());
  }
  return request.at_least_step();
}

// Where steps are durable a run that comes back goes on from the last step that every server has. Behind the fence the new owner has nothing of
// the slots: so all must have the step before it.
absl::Status RpcSlotTransfers::AwaitOthers(const Stage& stage, uint64_t step) const {
  if (!stage.durable_steps) return absl::OkStatus();
  const absl::Time deadline = absl::Now() + kFenceTimeout;
  for (const MemoryPeer& peer : stage.others) {
    while (true) {
      ASSIGN_OR_RETURN(const v1::Manifest manifest, ManifestOf(peer));
      if (manifest.head_step() >= step) break;
      if (absl::Now() >= deadline)
        return DeadlineExceeded("{} is at step {}, slots that move are at step {}", peer.name, manifest.head_step(), step);
      absl::SleepFor(absl::Milliseconds(5));
    }
  }
  return absl::OkStatus();
}

void RpcSlotTransfers::Both(const Stage& stage, v1::SlotMoveAction action) const {
  for (const MemoryPeer* peer : {&stage.from, &stage.to}) {
    const auto reply = MoveAt(*peer, stage.request, action);
    if (!reply.ok()) LOG_WARN("{}; it follows by itself", reply.status().ToString());
  }
}

absl::Status RpcSlotTransfers::FenceAndSwitch(Stage* stage, const SlotMap& next) {
  ASSIGN_OR_RETURN(const uint64_t fence, Seal(*stage, 0));
  for (const MemoryPeer* peer : {&stage->from, stage->to_is_listed ? &stage->to : nullptr})
    if (peer != nullptr) RETURN_IF_ERROR(MoveAt(*peer, stage->request, v1::SLOT_MOVE_ACTION_AWAIT_SEALED, kFenceTimeout).status());
  RETURN_IF_ERROR(AwaitOthers(*stage, fence - 1));
  Report(fmt::format("fenced before step {}", fence));
  RETURN_IF_ERROR(Copy(stage, v1::SLOT_MOVE_ACTION_FINISH));
  const absl::Time renewing = absl::Now();
  ASSIGN_OR_RETURN(const uint64_t renewed, Seal(*stage, fence));
  if (renewed != fence) return Aborted("the fence moved from step {} to {}", fence, renewed);
  Report("switching");
  if (absl::Now() > renewing + options_.lease / 2) return Aborted("this process stood still until the fence had almost run out");
  const absl::Status replaced = source_->Replace(next);
  if (replaced.ok()) return replaced;
  const absl::StatusOr<SlotMap> now = source_->Load();  // an error may come after the deed
  return now.ok() && now->ToJson() == next.ToJson() ? absl::OkStatus() : replaced;
}

absl::StatusOr<SlotTransferResult> RpcSlotTransfers::Move(const SlotTransfer& transfer, absl::Span<const std::string> leave) {
  const absl::Time began = absl::Now();
  ASSIGN_OR_RETURN(const SlotMap map, source_->Load());
  const SlotSet foreign = transfer.slots & ~map.SlotsOf(transfer.from);
  if (transfer.slots.none()) return InvalidArgument("no slots are named");
  if (foreign.any())
    return FailedPrecondition("slots {} do not belong to server \"{}\" by slot map epoch {}", FormatSlots(foreign), transfer.from, map.epoch());
  if (transfer.from == transfer.to.id) return InvalidArgument("slots {} are on server \"{}\" already", FormatSlots(transfer.slots), transfer.from);
  ASSIGN_OR_RETURN(const SlotMap next, map.Move(transfer.slots, transfer.to, leave));
  ASSIGN_OR_RETURN(const size_t from, map.ServerIndex(transfer.from));

  Stage stage;
  ASSIGN_OR_RETURN(stage.from, Connect(map.servers()[from], options_.tls));
  ASSIGN_OR_RETURN(stage.to, Connect(transfer.to, options_.tls));
  for (const SlotServer& server : map.servers()) {
    if (server.id == transfer.from || server.id == transfer.to.id) continue;
    ASSIGN_OR_RETURN(stage.others.emplace_back(), Connect(server, options_.tls));
  }
  RETURN_IF_ERROR(CheckServers(&stage, transfer));
  stage.to_is_listed = map.ServerIndex(transfer.to.id).ok();
  stage.request.set_move_id(NewMoveId());
  stage.request.set_slots(FormatSlots(transfer.slots));
  stage.request.set_source_address(map.servers()[from].address);

  for (const MemoryPeer* peer : {&stage.from, &stage.to})  // a move before this one may have ended without telling them
    RETURN_IF_ERROR(MoveAt(*peer, stage.request, v1::SLOT_MOVE_ACTION_RELOAD, kReloadTimeout).status());

  absl::Status status = CatchUp(&stage);
  absl::Time fenced;
  const absl::Time first_fence = absl::Now();
  for (int fence = 0; status.ok() || fence > 0; ++fence) {
    fenced = absl::Now();
    status = FenceAndSwitch(&stage, next);
    // A checkpoint was being made, or a step took long: training goes on, then once more.
    const bool again = absl::IsAborted(status) || absl::IsDeadlineExceeded(status);
    if (status.ok() || !again || absl::Now() - first_fence > kFencing) break;
    Report(fmt::format("the fence is lifted and tried again: {}", std::string(status.message())));
    Both(stage, v1::SLOT_MOVE_ACTION_RELEASE);
    absl::SleepFor(std::min(absl::Milliseconds(200) * (fence + 1), absl::Seconds(2)));
    const absl::Status copied = Copy(&stage, v1::SLOT_MOVE_ACTION_COPY);  // what steps changed meanwhile, so that the next fence is short
    if (copied.ok() || absl::IsAborted(copied)) continue;
    status = copied;
    break;
  }
  if (!status.ok()) {
    Both(stage, v1::SLOT_MOVE_ACTION_ABORT);
    return Annotate(status, fmt::format("moving {} slots from {} to {}; nothing changed, they stay on {}", transfer.slots.count(),
                                        transfer.from, transfer.to.id, transfer.from));
  }
  Report("switched");
  Both(stage, v1::SLOT_MOVE_ACTION_RELOAD);  // the old owner first
  stage.result.fence_seconds = absl::ToDoubleSeconds(absl::Now() - fenced);
  for (const MemoryPeer& peer : stage.others)
    MoveAt(peer, stage.request, v1::SLOT_MOVE_ACTION_RELOAD).status().IgnoreError();  // it looks by itself within a second
  stage.result.seconds = absl::ToDoubleSeconds(absl::Now() - began);
  stage.result.epoch = next.epoch();
  return stage.result;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SlotTransfers>> SlotTransfers::Open(const SlotTransferOptions& options) {
  ASSIGN_OR_RETURN(std::unique_ptr<SlotMapSource> source, OpenSlotMap(options.slot_map, options.tls));
  return std::make_unique<RpcSlotTransfers>(options, std::move(source));
}

}  // namespace membank
