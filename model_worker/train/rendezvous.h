// Where the ranks that train one anchor meet: torchrun's contract (MASTER_ADDR and MASTER_PORT name a TCP store of c10d, which rank 0 or torchrun's
// agent serves), and who of them is alive: every rank counts up a key of its own twice a second. Any thread.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace membank {

struct RendezvousOptions {
  std::string address;                       // of rank 0's machine
  uint16_t port = 0;
  uint32_t rank = 0, world_size = 1;
  std::chrono::milliseconds timeout{300000};
  std::string prefix;                        // of all keys: differs from start to start where the store outlives the ranks
  bool agent_store = false;                  // torchrun's agent serves the store
};

class Rendezvous {
 public:
  // Waits until all ranks are there, up to the timeout; DEADLINE_EXCEEDED names those that are not.
  static absl::StatusOr<std::unique_ptr<Rendezvous>> Join(const RendezvousOptions& options);
  ~Rendezvous();
  Rendezvous(const Rendezvous&) = delete;
  Rendezvous& operator=(const Rendezvous&) = delete;

  const RendezvousOptions& options() const { return options_; }
  const c10::intrusive_ptr<c10d::Store>& store() const { return store_; }
  absl::Status Set(const std::string& key, const std::string& value);
  // Waits until a rank has set it.
  absl::StatusOr<std::string> Get(const std::string& key, std::chrono::milliseconds timeout);

  // Before this rank gives up: "rank 2", "ranks 1, 3" are those that give no sign of life and did not give up themselves; rank 0 when the store it
  // serves does not answer. Empty: all are alive. Watches for some seconds, the first time; rank 0 stays until the others have watched.
  std::string LeaveAndNameSilent() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Pulse;
  explicit Rendezvous(const RendezvousOptions& options) : options_(options) {}
  absl::StatusOr<c10::intrusive_ptr<c10d::Store>> Connect(bool serve) const;
  absl::Status AwaitAll();
  std::vector<int64_t> Beats() const;
  std::string WatchAndLeave();
  void Leave(const std::vector<uint32_t>& silent);

  const RendezvousOptions options_;
  c10::intrusive_ptr<c10d::Store> store_;
  std::shared_ptr<Pulse> pulse_;

  absl::Mutex mu_;
  std::optional<std::string> silent_ ABSL_GUARDED_BY(mu_);   // once this rank left
};

}  // namespace membank
