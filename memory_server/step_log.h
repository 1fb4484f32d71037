// The redo log of durability class "step": what turns one head into the next, on disk before the step is acknowledged. A step is two
// records: its summed gradients with the run's settings, written while it is prepared, and the word to apply them with scale and rates,
// which is made durable (fdatasync). The optimizer is deterministic, so replaying the records over the cut they follow gives the same bits.
//
//   <data>/steps/<number>.log    a segment: the steps that follow one cut. Number = order of creation.
//   record                       magic "MBL1" | CRC32C of this header | JSON bytes u32 | CRC32C of the JSON | data bytes u64 |
//                                CRC32C of the data | 0 u32 | JSON | data | zeros up to a multiple of 8. Little-endian.
//     {"kind": "segment", ...}   first in a segment: bank, the cut it follows, the server's slots, whether it continues the segment before it
//     {"kind": "gradients", ...} run settings, step, block list; data = the blocks' gradients one after the other
//     {"kind": "apply", ...}     step, scale, learning rate, weight decay: the newest gradients of that step count
//     {"kind": "image", ...}     a block of slots that are moving here, as it is at the fence; data = its weights and state records
//     {"kind": "taken", ...}     ends the images: slots and fence. Durable before the slot map can name this server
//     {"kind": "owned", ...}     the server's slots from here on. Those it did not have before are the images right before it
//
// A server that dies between "taken" and "owned" finds out from the slot map whether the slots became its own.
// What a crash tore off at the end of the last segment was never acknowledged and is cut off; damage with valid records behind it is
// DATA_LOSS. A failed write changes nothing; after a failed fdatasync the log refuses everything until the server is started again.
// Owned by the shard, which serialises all calls (train_mu_).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/slot_map.h"
#include "common/bank/training.h"
#include "memory_server/block_image.h"
#include "memory_server/checkpoint.h"
#include "memory_server/gradients.h"

namespace membank {

struct LoggedStep {
  RunSettings run;
  uint64_t step = 0;
  ApplyParameters parameters;
  RankGradients gradients;
};

// Slots that moved to this server, with every touched block in them as it is at the fence (slot_move.h).
struct SlotsTaken {
  CutMarks marks;               // of the fence: the last step that the blocks have seen
  SlotSet slots;
  bool joins = false;           // the server had no steps of its own before; its head becomes the fence's
  RunEpochs run_epochs;         // of a server that joins: fences of runs
};
struct LoggedImage {
  BlockId id;
  absl::Span<const uint8_t> weights, state;  // store records (block_record.h); borrowed
};

// What a replay does with what it finds, in order; an error ends it.
struct LogReplay {
  std::function<absl::Status(LoggedStep)> apply;
  std::function<absl::Status(const SlotsTaken&, const std::vector<LoggedImage>&)> take;  // the images replace whatever these slots held
};

// The cut that a segment's steps follow; an empty id is the untouched bank. Within an epoch a step has one outcome only, so id and marks
// name one history.
struct LogBase {
  std::string checkpoint_id;
  CutMarks marks;

  bool operator==(const LogBase&) const = default;
};

class StepLog {
 public:
  // Does not read records yet. DATA_LOSS for a segment whose first record is damaged.
  static absl::StatusOr<std::unique_ptr<StepLog>> Open(const std::string& directory, const std::string& spec_hash);
  ~StepLog();

  // The steps that follow `base`, in order, up to `last_step`. Whatever lies behind is removed: a torn tail, steps after `last_step`, segments
  // that lead elsewhere. Afterwards the log is ready to append. `slots`: the server's by now; slots that the log has as taken at its end, and
  // that are among them, are. Returns the slots whose steps it has: any other slot of the server has missed some.
  absl::StatusOr<SlotSet> Replay(const LogBase& base, const SlotSet& slots, uint64_t last_step, const LogReplay& replay);
  // Steps from here on follow `base`, on a server with `slots`. continues: the steps logged so far lead to it and stay until RemoveBefore;
  // otherwise they are given up and removed. Durable with the next WriteApply or Sync.
  absl::Status Begin(const LogBase& base, const SlotSet& slots, bool continues);

  absl::Status WriteGradients(const RunSettings& run, uint64_t step, const RankGradients& gradients);
  absl::Status WriteApply(uint64_t step, const ApplyParameters& parameters);  // durable on return
  absl::Status Sync();

  absl::Status WriteImage(const BlockImage& image);
  absl::Status WriteTaken(const SlotsTaken& taken);  // durable on return, with the images before it
  absl::Status WriteOwned(const SlotSet& slots);     // durable on return
  // What lies taken at the end and is not owned yet: no step has been logged since.
  const std::optional<SlotsTaken>& waiting() const { return waiting_; }
  absl::Status ReadWaiting(const std::function<absl::Status(const SlotsTaken&, const std::vector<LoggedImage>&)>& take) const;

  absl::Status RemoveBefore(const LogBase& base);  // what led to a cut that is committed now
  absl::Status Clear();
  // Rewrites the segments without the gradients of the covered blocks; steps and their order stay. A crash leaves each segment as it was or
  // as it will be. DATA_LOSS for damage, as Replay finds it.
  absl::Status Purge(const std::function<bool(BlockId)>& covered);
  bool empty() const { return segments_.empty(); }
  uint64_t segment() const { return segments_.empty() ? 0 : segments_.back().number; }  // that records go to
  uint64_t bytes() const;                          // on disk

 private:
  struct Segment {
    uint64_t number = 0;
    std::string path;
    LogBase base;
    SlotSet slots;
    bool continues = false;
    uint64_t bytes = 0;
  };
  struct Data;                                     // of a record, borrowed
  struct Moved;
  struct Reading {                                 // where a replay is
    uint64_t head = 0, last_step = 0;
    SlotSet slots;                                 // the server's by now
    SlotSet owned;                                 // by the log
    bool last_segment = false;
    bool took_last = false;                        // slots at its end
  };

  StepLog(const std::string& directory, const std::string& spec_hash) : directory_(directory), spec_hash_(spec_hash) {}
  absl::Status LoadSegment(const std::string& name);
  absl::Status ReplaySegment(Segment* segment, Reading* reading, const LogReplay& replay);
  absl::Status Append(const std::string& json, const Data& data);
  absl::Status PurgeSegment(Segment* segment, const std::function<bool(BlockId)>& covered);
  absl::Status RemoveSegments(size_t begin, size_t end);
  absl::Status OpenLast();
  void Close();

  const std::string directory_, spec_hash_;
  std::vector<Segment> segments_;  // ascending
  int file_ = -1;                  // of the last segment
  bool directory_synced_ = true;
  std::optional<SlotsTaken> waiting_;
  absl::Status failure_;           // of an fdatasync
};

}  // namespace membank
