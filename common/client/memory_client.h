// The client of the memory servers: hides the slot map, the streams, checksums and retries. Plain structs, no gRPC or protobuf here, so
// that Torch code may include it. All calls block until done or timed out; any thread. Errors name server, block and value.
// When a server is away (UNAVAILABLE) a call is retried with jittered back-off inside its deadline: Fetch changes nothing, and pushes,
// steps, runs and checkpoints are deduplicated on the server. Only DeleteCheckpoint is not retried. A block whose checksum does not
// hold is fetched once more, then DATA_LOSS names it. While slots change hands the slot map is read again, and the call goes on by the newer one.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/bank/bank_spec.h"
#include "common/bank/payload.h"
#include "common/bank/slot_map.h"
#include "common/bank/training.h"
#include "common/rpc/tls_files.h"

namespace membank {

struct BlockFetch {
  // in
  BlockId id;
  absl::Span<uint8_t> destination;         // BlockBytes(id.level) bytes; written once, straight from the received slices
  int64_t newer_than = -1;                 // >= 0: the version held; when it is the block's, nothing is sent and `unchanged` is set
  // out
  uint64_t version = 0;
  bool unchanged = false;
  bool blocked = false;                    // the servers do not serve the block: the destination was filled with zeros
  PayloadType payload = PayloadType::kBank;  // of the destination; kI8Rows takes only the first PayloadBytes of it
};

struct FetchOptions {
  std::string bank_version;                // empty: the live head
  bool int8 = false;                       // the caller reads int8 payloads, too; else FAILED_PRECONDITION when the version has them
  uint64_t min_step = 0;                   // live head only: wait until this step is applied
  std::chrono::milliseconds timeout{30000};
};

struct BlockGradient {
  BlockId id;
  DType dtype = DType::kBF16;              // BF16, F32 or I8_ROWS
  absl::Span<const uint8_t> bytes;         // GradientBytes (common/bank/gradient_codec.h)
};

struct BankStatus {
  BankSpec spec;
  uint64_t slot_map_epoch = 0;
  uint64_t head_step = 0;                  // minimum over servers
  std::string run_id;                      // last run, empty when never trained
  uint64_t run_epoch = 0;                  // maximum over servers
  std::vector<BankVersion> versions;       // published on every server, in one form
  uint64_t touched_blocks = 0, resident_bytes = 0;
  bool durable_steps = false;              // on every server: Rewind goes back to any step since the last checkpoint
};

struct MemoryClientOptions {
  std::string slot_map_path;               // one of these two
  std::vector<std::string> servers;        // addresses: a striped map
  int channels_per_server = 2;
  std::chrono::milliseconds connect_timeout{30000};
  std::chrono::milliseconds call_timeout{120000};   // of every call that names no timeout of its own
  TlsFiles tls;                            // nothing named: no TLS
  std::string expected_spec_hash;          // when set, FAILED_PRECONDITION names both hashes on a mismatch
};

struct ClientTraffic {                     // since Connect; payload bytes only
  uint64_t fetched_bytes = 0, pushed_bytes = 0, fetched_blocks = 0, unchanged_blocks = 0;
};

class MemoryClient {
 public:
  // Waits until all servers answer, checks that they hold the same bank and the same slot-map epoch.
  static absl::StatusOr<std::unique_ptr<MemoryClient>> Connect(const MemoryClientOptions& options);
  virtual ~MemoryClient() = default;

  virtual const BankSpec& spec() const = 0;
  virtual absl::StatusOr<BankStatus> GetStatus() = 0;
  // The versions that every server has published; for a server that does not answer, one of its replicas says it.
  virtual absl::StatusOr<std::vector<std::string>> ListVersions(std::chrono::milliseconds timeout) = 0;

  // All blocks, servers in parallel. On error the destinations are undefined.
  virtual absl::Status Fetch(absl::Span<BlockFetch> blocks, const FetchOptions& options) = 0;

  // Tells the servers which blocks of the live head are fetched or trained soon, so that those on disk are read ahead. Does not wait for it.
  virtual absl::Status Prefetch(absl::Span<const BlockId> ids) = 0;

  virtual absl::Status BeginRun(const RunSettings& settings) = 0;
  // This rank's whole contribution to a step (every server gets a push, with no blocks if need be). Duplicates are fine.
  // `sums`: numbers of this rank's part that the servers add over the ranks, see AwaitStep.
  virtual absl::Status Push(const StepId& step, uint32_t rank, absl::Span<const BlockGradient> gradients,
                            absl::Span<const double> sums = {}) = 0;
  // Waits for all ranks' pushes; the sum of squares of the step's summed gradients over all servers.
  virtual absl::StatusOr<double> PrepareStep(const StepId& step, std::chrono::milliseconds timeout) = 0;
  virtual absl::Status ApplyStep(const StepId& step, const ApplyParameters& parameters) = 0;

  // Waits until the step is applied on every server; the ranks' sums, added in rank order (none when it is not the last one applied).
  virtual absl::StatusOr<std::vector<double>> AwaitStep(const StepId& step, std::chrono::milliseconds timeout) = 0;
  // Rank 0, after BeginRun: describes the run to the others. They: wait for that and learn which run it is; once per epoch.
  virtual absl::StatusOr<JoinedRun> JoinRun(const RunMember& member, std::chrono::milliseconds timeout) = 0;

  // Remembers the head on every server for PrepareCheckpoint with the same id and step, so that steps may go on at once.
  virtual absl::Status SnapshotCheckpoint(const std::string& id, uint64_t step) = 0;
  virtual absl::Status PrepareCheckpoint(const std::string& id, uint64_t step) = 0;
  // keep: committed ones to keep on every server, this one included; 0: as many as each server's settings say.
  virtual absl::Status CommitCheckpoint(const std::string& id, uint32_t keep = 0) = 0;
  virtual absl::Status AbortCheckpoint(const std::string& id) = 0;
  virtual absl::Status DeleteCheckpoint(const std::string& id) = 0;
  virtual absl::Status RestoreCheckpoint(const std::string& id) = 0;   // prepared or committed; afterwards it is committed and the head
  // Gives up the steps after `step` on every server with durable steps; a server that is there already does nothing.
  virtual absl::Status Rewind(uint64_t step) = 0;
  virtual absl::StatusOr<std::vector<CheckpointInfo>> ListCheckpoints() = 0;  // present on every server
  // Turns a committed checkpoint into an immutable bank version for serving.
  virtual absl::Status Publish(const std::string& checkpoint_id, const std::string& version, PayloadType payload = PayloadType::kBank) = 0;

  virtual ClientTraffic traffic() const = 0;
};

}  // namespace membank
