#include "router/worker_pool.h"

#include <algorithm>
#include <cmath>

#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "xxhash.h"

namespace membank {
namespace {

// A worker may have this much more than the mean before a path goes elsewhere, and a few requests never count as overload.
constexpr double kLoadFactor = 1.25;
constexpr double kFreeLoad = 4;

double Load(const v1::WorkerState& state) { return state.in_flight(); }

// Why a request that needs these banks cannot be made there; empty: it can.
std::string WhyNot(const v1::WorkerStatus& status, const NeededBanks& banks) {
  if (banks.first.empty()) return "";
  if (status.bank().bank_id() != banks.first) return fmt::format("its first bank is '{}', not '{}'", status.bank().bank_id(), banks.first);
  std::set<std::string> missing = banks.stacked;
  for (const v1::StackedBank& stacked : status.stacked()) missing.erase(stacked.bank().bank_id());
  return missing.empty() ? "" : fmt::format("it has no bank '{}'", *missing.begin());
}

uint64_t Score(uint64_t affinity, const std::string& address) { return XXH3_64bits_withSeed(address.data(), address.size(), affinity); }

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerPool>> WorkerPool::Create(const WorkerPoolOptions& options) {
  if (options.workers.empty()) return InvalidArgument("a router needs at least one worker: give its host:port with --worker");
  auto pool = std::unique_ptr<WorkerPool>(new WorkerPool(options));
  std::set<std::string> seen;
  for (const std::string& address : options.workers) {
    if (!seen.insert(address).second) return InvalidArgument("worker {} is listed twice", address);
    ChannelOptions channel;
    channel.tls = options.tls;
    ASSIGN_OR_RETURN(const auto channels, MakeChannels(address, channel));
    auto worker = std::make_unique<Worker>();
    worker->address = address;
    worker->stub = v1::WorkerService::NewStub(channels.front());
    worker->state.set_address(address);
    worker->state.set_error("has not answered yet");
    pool->workers_.push_back(std::move(worker));
  }
  for (auto& worker : pool->workers_) worker->poller = std::thread([pool = pool.get(), w = worker.get()] { pool->PollLoop(w); });
  return pool;
}

WorkerPool::~WorkerPool() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  for (auto& worker : workers_) {
    if (worker->poller.joinable()) worker->poller.join();
  }
}

void WorkerPool::PollLoop(Worker* worker) {
  while (true) {
    Poll(worker);
    absl::MutexLock lock(&mu_);
    if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), absl::FromChrono(options_.poll_interval))) return;
  }
}

void WorkerPool::Poll(Worker* worker) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + options_.poll_timeout);
  v1::WorkerStatus status;
  absl::Status health = FromGrpc(worker->stub->GetStatus(&context, v1::GetStatusRequest(), &status));
  if (health.ok()) health = CheckStatus(status);
  absl::MutexLock lock(&mu_);
  if (!status.model().empty()) worker->state.mutable_status()->Swap(&status);
  SetHealth(worker, health);
}

absl::Status WorkerPool::CheckStatus(const v1::WorkerStatus& status) const {
  if (status.draining()) return Unavailable("is draining");
  const std::vector<std::string>& trees = options_.tree_fingerprints;
  const auto check = [&](const v1::BankSpec& bank) -> absl::Status {
    const std::string& tree = bank.tree_fingerprint();
    if (trees.empty() || tree.empty() || std::find(trees.begin(), trees.end(), tree) != trees.end()) return absl::OkStatus();
    return FailedPrecondition("its bank {} was made with tree {}, this router has tree {}; start the router with the bank's tree", bank.bank_id(),
                              tree, fmt::join(trees, ", "));
  };
  RETURN_IF_ERROR(check(status.bank()));
  for (const v1::StackedBank& stacked : status.stacked()) RETURN_IF_ERROR(check(stacked.bank()));
  return absl::OkStatus();
}

void WorkerPool::SetHealth(Worker* worker, const absl::Status& health) {
  const bool changed = worker->state.healthy() != health.ok() || worker->state.error() != health.message();
  if (changed) {
    if (health.ok()) {
      LOG_INFO("worker {} is healthy: model {}, bank '{}' version '{}'", worker->address, worker->state.status().model(),
               worker->state.status().bank().bank_id(), worker->state.status().bank_version());
    } else {
      LOG_WARN("worker {} is not used: {}", worker->address, std::string(health.message()));
    }
  }
  worker->state.set_healthy(health.ok());
  worker->state.set_error(std::string(health.message()));
  GetGauge("membank_router_worker_healthy", "1 when the worker gets requests", {{"worker", worker->address}}).Set(health.ok());
}

absl::StatusOr<WorkerPool::Lease> WorkerPool::Pick(std::optional<uint64_t> affinity, const std::set<std::string>& exclude,
                                                   const NeededBanks& banks) {
  absl::MutexLock lock(&mu_);
  std::vector<Worker*> usable;
  std::string reasons;
  double total = 1;  // with the request to place
  for (const auto& worker : workers_) {
    if (exclude.contains(worker->address)) continue;
    const bool healthy = worker->state.healthy();
    const std::string why_not = healthy ? WhyNot(worker->state.status(), banks) : worker->state.error();
    if (healthy && why_not.empty()) {
      usable.push_back(worker.get());
      total += Load(worker->state);
    } else {
      reasons += fmt::format("{}{}: {}", reasons.empty() ? "" : "; ", worker->address, why_not);
    }
  }
  if (usable.empty()) return Unavailable("no worker can take the request{}{}", reasons.empty() ? "" : ": ", reasons);

  const auto less_loaded = [](const Worker* a, const Worker* b) { return Load(a->state) < Load(b->state); };
  Worker* chosen = *std::min_element(usable.begin(), usable.end(), less_loaded);
  if (affinity) {
    const double bound = std::max(kFreeLoad, std::ceil(kLoadFactor * total / static_cast<double>(usable.size())));
    std::erase_if(usable, [&](const Worker* worker) { return Load(worker->state) + 1 > bound; });
    const auto lower_score = [&](const Worker* a, const Worker* b) { return Score(*affinity, a->address) < Score(*affinity, b->address); };
    if (!usable.empty()) chosen = *std::max_element(usable.begin(), usable.end(), lower_score);
  }
  chosen->state.set_in_flight(chosen->state.in_flight() + 1);
  return Lease(this, chosen);
}

WorkerPool::Lease::~Lease() {
  if (pool_ == nullptr) return;
  absl::MutexLock lock(&pool_->mu_);
  worker_->state.set_in_flight(worker_->state.in_flight() - 1);
}

const std::string& WorkerPool::Lease::address() const { return worker_->address; }

v1::WorkerService::Stub& WorkerPool::Lease::stub() const { return *worker_->stub; }

void WorkerPool::Lease::ReportUnreachable(const absl::Status& status) {
  absl::MutexLock lock(&pool_->mu_);
  pool_->SetHealth(worker_, status);
}

std::vector<v1::WorkerState> WorkerPool::States() const {
  absl::MutexLock lock(&mu_);
  std::vector<v1::WorkerState> states;
  for (const auto& worker : workers_) states.push_back(worker->state);
  return states;
}

std::vector<v1::BankSpec> WorkerPool::Banks() const {
  absl::MutexLock lock(&mu_);
  std::vector<v1::BankSpec> most;
  for (const auto& worker : workers_) {
    const v1::WorkerStatus& status = worker->state.status();
    if (!worker->state.healthy() || !status.has_bank() || 1 + static_cast<size_t>(status.stacked_size()) <= most.size()) continue;
    most = {status.bank()};
    for (const v1::StackedBank& stacked : status.stacked()) most.push_back(stacked.bank());
  }
  return most;
}

}  // namespace membank
