// Slots on the wire: the export stream of the old owner, and the new owner's side of one round of copying. See slot_move.h for the move.
#pragma once

#include <memory>
#include <string>

#include "common/rpc/tls.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/server_callback.h"
#include "membank/v1/memory.grpc.pb.h"
#include "memory_server/call_threads.h"
#include "memory_server/slot_move.h"

namespace membank {

void ToProto(const SlotSourceState& state, v1::SlotsReply* out);
absl::StatusOr<SlotSourceState> FromProto(const v1::SlotsReply& reply);

// One ExportSlots call, on a thread of its own. Owns itself from construction to the end of the call; mover and threads outlive it.
class ExportCall final : public grpc::ServerWriteReactor<v1::ExportSlotsChunk> {
 public:
  ExportCall(Shard* shard, const SlotMover* mover, CallThreads* threads, grpc::CallbackServerContext* context,
             const v1::ExportSlotsRequest& request);

 private:
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnCancel() override;
  void OnDone() override { delete this; }

  absl::Status Run();
  absl::Status WriteBlock(BlockId id, absl::Span<const uint8_t> weights, absl::Span<const uint8_t> state);
  absl::Status Write(const v1::ExportSlotsChunk& chunk) ABSL_LOCKS_EXCLUDED(mu_);

  Shard* const shard_;
  const SlotMover* const mover_;
  const v1::ExportSlotsRequest request_;
  absl::Mutex mu_;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
};

struct SlotCopyResult {
  uint64_t blocks = 0, bytes = 0;
};

// Copies from the old owner at `address` what changed since the last round of this move. `last`: the final round, both servers are sealed.
absl::StatusOr<SlotCopyResult> CopySlots(SlotMover* mover, const std::string& spec_hash, const TlsFiles& tls, const std::string& address,
                                         const std::string& move_id, const SlotSet& slots, bool last, absl::Time deadline);

// Copies the owner's published versions of `slots` that are not here, oldest first; of each only the blocks that differ from the one before.
// DATA_LOSS when what arrived is not what the owner has.
absl::StatusOr<SlotCopyResult> CopyVersions(SlotMover* mover, const std::string& spec_hash, const TlsFiles& tls, const std::string& address,
                                            const SlotSet& slots, absl::Time deadline);

}  // namespace membank
