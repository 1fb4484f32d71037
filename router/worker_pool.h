// The workers a router may use: a fixed list, each polled with GetStatus by its own thread, and the choice among the healthy ones.
// A path prefers the same worker every time (rendezvous hashing of the leaf), because that worker's block cache is warm for it, unless that
// worker has much more to do than the others (consistent hashing with bounded loads, Mirrokni et al. 2016).
// Owned by main or a test; thread-safe. Destroy it after all leases.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/rpc/tls.h"
#include "membank/v1/router.pb.h"
#include "membank/v1/worker.grpc.pb.h"

namespace membank {

struct WorkerPoolOptions {
  std::vector<std::string> workers;                  // addresses, host:port
  std::chrono::milliseconds poll_interval{500};      // of GetStatus
  std::chrono::milliseconds poll_timeout{2000};      // without an answer the worker is not healthy
  std::vector<std::string> tree_fingerprints;        // when there are any, a worker with a bank that names another tree is not used
  TlsFiles tls;
};

// The banks that a worker must have for a request, by name; none named: any worker will do.
struct NeededBanks {
  std::string first;
  std::set<std::string> stacked;
};

class WorkerPool {
  struct Worker;

 public:
  // INVALID_ARGUMENT: no worker, or one named twice. Returns before the first poll is answered.
  static absl::StatusOr<std::unique_ptr<WorkerPool>> Create(const WorkerPoolOptions& options);
  ~WorkerPool();

  // A place at a worker for one request; counts as its load while it lives.
  class Lease {
   public:
    Lease(WorkerPool* pool, Worker* worker) : pool_(pool), worker_(worker) {}
    Lease(Lease&& other) noexcept : pool_(std::exchange(other.pool_, nullptr)), worker_(other.worker_) {}
    Lease& operator=(Lease&&) = delete;
    ~Lease();

    const std::string& address() const;
    v1::WorkerService::Stub& stub() const;
    // The call failed as if nobody were there: not picked again until a poll is answered.
    void ReportUnreachable(const absl::Status& status);

   private:
    WorkerPool* pool_;
    Worker* worker_;
  };

  // `affinity`: requests with the same number prefer the same worker; nothing = the least loaded. `exclude`: addresses already tried.
  // UNAVAILABLE says of each worker why it cannot be used.
  absl::StatusOr<Lease> Pick(std::optional<uint64_t> affinity, const std::set<std::string>& exclude = {}, const NeededBanks& banks = {})
      ABSL_LOCKS_EXCLUDED(mu_);

  std::vector<v1::WorkerState> States() const ABSL_LOCKS_EXCLUDED(mu_);
  // The banks of the healthy worker that has most of them: the first one, then those stacked on it.
  std::vector<v1::BankSpec> Banks() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Worker {
    std::string address;
    std::unique_ptr<v1::WorkerService::Stub> stub;
    std::thread poller;
    v1::WorkerState state;  // guarded by mu_
  };

  explicit WorkerPool(const WorkerPoolOptions& options) : options_(options) {}
  void PollLoop(Worker* worker) ABSL_LOCKS_EXCLUDED(mu_);
  void Poll(Worker* worker) ABSL_LOCKS_EXCLUDED(mu_);
  void SetHealth(Worker* worker, const absl::Status& health) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckStatus(const v1::WorkerStatus& status) const;

  const WorkerPoolOptions options_;
  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::unique_ptr<Worker>> workers_;  // the list is fixed after Create
};

}  // namespace membank
