// The redo log of durability class "step": what turns one head into the next, on disk before the step is acknowledged. A step is two
// records: its summed gradients with the run's settings, written while it is prepared, and the word to apply them with scale and rates,
// which is made durable (fdatasync). The optimizer is deterministic, so replaying the records over the cut they follow gives the same bits.
//
//   <data>/steps/<number>.log    a segment: the steps that follow one cut. Number = order of creation.
//   record                       magic "MBL1" | CRC32C of this header | JSON bytes u32 | CRC32C of the JSON | data bytes u64 |
//                                CRC32C of the data | 0 u32 | JSON | data | zeros up to a multiple of 8. Little-endian.
//     {"kind": "segment", ...}   first in a segment: bank, the cut it follows, whether it continues the segment before it
//     {"kind": "gradients", ...} run settings, step, block list; data = the blocks' gradients one after the other
//     {"kind": "apply", ...}     step, scale, learning rate, weight decay: the newest gradients of that step count
//
// What a crash tore off at the end of the last segment was never acknowledged and is cut off; damage with valid records behind it is
// DATA_LOSS. A failed write changes nothing; after a failed fdatasync the log refuses everything until the server is started again.
// Owned by the shard, which serialises all calls (train_mu_).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/bank/training.h"
#include "memory_server/checkpoint.h"
#include "memory_server/gradients.h"

namespace membank {

struct LoggedStep {
  RunSettings run;
  uint64_t step = 0;
  ApplyParameters parameters;
  RankGradients gradients;
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

  // The steps that follow `base`, in order, up to `last_step`; the error of `apply` ends it. Whatever lies behind is removed: a torn tail,
  // steps after `last_step`, segments that lead elsewhere. Afterwards the log is ready to append.
  absl::Status Replay(const LogBase& base, uint64_t last_step, const std::function<absl::Status(LoggedStep)>& apply);
  // Steps from here on follow `base`. continues: the steps logged so far lead to it and stay until RemoveBefore; otherwise they are given up
  // and removed. Durable with the next WriteApply or Sync.
  absl::Status Begin(const LogBase& base, bool continues);

  absl::Status WriteGradients(const RunSettings& run, uint64_t step, const RankGradients& gradients);
  absl::Status WriteApply(uint64_t step, const ApplyParameters& parameters);  // durable on return
  absl::Status Sync();

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
    bool continues = false;
    uint64_t bytes = 0;
  };

  StepLog(const std::string& directory, const std::string& spec_hash) : directory_(directory), spec_hash_(spec_hash) {}
  absl::Status LoadSegment(const std::string& name);
  absl::Status ReplaySegment(Segment* segment, uint64_t last_step, uint64_t* head, const std::function<absl::Status(LoggedStep)>& apply);
  absl::Status Append(const std::string& json, const RankGradients& gradients = {});
  absl::Status PurgeSegment(Segment* segment, const std::function<bool(BlockId)>& covered);
  absl::Status RemoveSegments(size_t begin, size_t end);
  absl::Status OpenLast();
  void Close();

  const std::string directory_, spec_hash_;
  std::vector<Segment> segments_;  // ascending
  int file_ = -1;                  // of the last segment
  bool directory_synced_ = true;
  absl::Status failure_;           // of an fdatasync
};

}  // namespace membank
