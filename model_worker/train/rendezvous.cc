#include "model_worker/train/rendezvous.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <algorithm>
#include <future>
#include <thread>
#include <vector>

#include "common/base/status_macros.h"
#include "fmt/ranges.h"

namespace membank {
namespace {

constexpr std::chrono::milliseconds kBeat{500}, kWatch{2500}, kStoreAnswers{5000}, kLinger{8000};
constexpr int64_t kLeft = -1;

std::string Here(uint32_t rank) { return fmt::format("here/{}", rank); }
std::string Beat(uint32_t rank) { return fmt::format("beat/{}", rank); }

std::string Left(uint32_t rank) { return fmt::format("left/{}", rank); }

std::string RanksText(const std::vector<uint32_t>& ranks) {
  return ranks.empty() ? "" : fmt::format("rank{} {}", ranks.size() == 1 ? "" : "s", fmt::join(ranks, ", "));
}

}  // namespace

// The thread that shows that this rank is alive. A store that hangs (its process is stopped) holds it up, so nobody waits for it.
struct Rendezvous::Pulse {
  c10::intrusive_ptr<c10d::Store> store;   // a connection of its own: calls of one connection wait for each other
  std::atomic<bool> stop{false};

  static void Start(const std::shared_ptr<Pulse>& pulse, uint32_t rank) {
    std::thread([pulse, rank] {
      try {
        for (; !pulse->stop; std::this_thread::sleep_for(kBeat)) pulse->store->add(Beat(rank), 1);
      } catch (const std::exception&) {  // rank 0 is gone; whoever needs it finds out
      }
    }).detach();
  }
};

absl::StatusOr<c10::intrusive_ptr<c10d::Store>> Rendezvous::Connect(bool serve) const {
  c10d::TCPStoreOptions tcp;
  tcp.port = options_.port;
  tcp.isServer = serve;
  tcp.waitWorkers = false;
  tcp.timeout = options_.timeout;
  try {
    return c10::make_intrusive<c10d::PrefixStore>(options_.prefix, c10::make_intrusive<c10d::TCPStore>(options_.address, tcp));
  } catch (const std::exception& e) {
    const std::string why = std::string(e.what()).substr(0, std::string(e.what()).find('\n'));
    if (serve) return Unavailable("rank 0 cannot serve {}:{}: {}; give another --master-port (MASTER_PORT)", options_.address, options_.port, why);
    return DeadlineExceeded("rank {} of {} waited for rank 0 at {}:{}: {}; is it started, and is --master-addr (MASTER_ADDR) its machine?", options_.rank,
                            options_.world_size, options_.address, options_.port, why);
  }
}

absl::StatusOr<std::unique_ptr<Rendezvous>> Rendezvous::Join(const RendezvousOptions& options) {
  std::unique_ptr<Rendezvous> rendezvous(new Rendezvous(options));
  ASSIGN_OR_RETURN(rendezvous->store_, rendezvous->Connect(options.rank == 0 && !options.agent_store));
  rendezvous->pulse_ = std::make_shared<Pulse>();
  ASSIGN_OR_RETURN(rendezvous->pulse_->store, rendezvous->Connect(false));
  RETURN_IF_ERROR(rendezvous->Set(Here(options.rank), "1"));
  RETURN_IF_ERROR(rendezvous->AwaitAll());
  Pulse::Start(rendezvous->pulse_, options.rank);
  return rendezvous;
}

Rendezvous::~Rendezvous() {
  if (pulse_ != nullptr) pulse_->stop = true;
}

absl::Status Rendezvous::AwaitAll() {
  const auto deadline = std::chrono::steady_clock::now() + options_.timeout;
  for (;;) {
    std::vector<uint32_t> missing;
    try {
      for (uint32_t rank = 0; rank < options_.world_size; ++rank)
        if (!store_->check({Here(rank)})) missing.push_back(rank);
    } catch (const std::exception& e) {
      return Unavailable("rank 0 at {}:{} went away while the ranks met: {}", options_.address, options_.port, e.what());
    }
    if (missing.empty()) return absl::OkStatus();
    if (std::chrono::steady_clock::now() > deadline)
      return DeadlineExceeded("rank {} of {} waited {} s for {} at {}:{}; start all ranks with the same --world-size", options_.rank, options_.world_size,
                              options_.timeout.count() / 1000, RanksText(missing), options_.address, options_.port);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

absl::Status Rendezvous::Set(const std::string& key, const std::string& value) {
  try {
    store_->set(key, std::vector<uint8_t>(value.begin(), value.end()));
    return absl::OkStatus();
  } catch (const std::exception& e) {
    return Unavailable("rank 0 at {}:{} is gone: {}", options_.address, options_.port, e.what());
  }
}

absl::StatusOr<std::string> Rendezvous::Get(const std::string& key, std::chrono::milliseconds timeout) {
  try {
    store_->wait({key}, timeout);
    const std::vector<uint8_t> value = store_->get(key);
    return std::string(value.begin(), value.end());
  } catch (const std::exception& e) {
    return DeadlineExceeded("rank {} waited {} s for \"{}\" of another rank: {}", options_.rank, timeout.count() / 1000, key, e.what());
  }
}

// Of every rank; kLeft of those that gave up. None: the store does not answer. Its server may be a stopped process: it is asked from a thread that is
// left alone then.
std::vector<int64_t> Rendezvous::Beats() const {
  auto promise = std::make_shared<std::promise<std::vector<int64_t>>>();
  std::future<std::vector<int64_t>> answer = promise->get_future();
  std::thread([promise, store = pulse_->store, world_size = options_.world_size] {
    std::vector<int64_t> beats;
    try {
      for (uint32_t rank = 0; rank < world_size; ++rank) beats.push_back(store->check({Left(rank)}) ? kLeft : store->add(Beat(rank), 0));
    } catch (const std::exception&) {
      beats.clear();
    }
    promise->set_value(std::move(beats));
  }).detach();
  return answer.wait_for(kStoreAnswers) == std::future_status::ready ? answer.get() : std::vector<int64_t>();
}

std::string Rendezvous::LeaveAndNameSilent() {
  absl::MutexLock lock(&mu_);
  if (!silent_.has_value()) silent_ = WatchAndLeave();
  return *silent_;
}

std::string Rendezvous::WatchAndLeave() {
  const std::vector<int64_t> before = Beats();
  if (!before.empty()) std::this_thread::sleep_for(kWatch);
  const std::vector<int64_t> after = before.empty() ? before : Beats();
  if (after.empty()) return options_.agent_store ? "torchrun's agent" : "rank 0";
  std::vector<uint32_t> silent;
  for (uint32_t rank = 0; rank < options_.world_size; ++rank)
    if (after[rank] == before[rank] && after[rank] != kLeft) silent.push_back(rank);
  Leave(silent);
  return RanksText(silent);
}

void Rendezvous::Leave(const std::vector<uint32_t>& silent) {
  if (!Set(Left(options_.rank), "1").ok() || options_.rank != 0) return;
  const auto deadline = std::chrono::steady_clock::now() + kLinger;
  for (;;) {
    const std::vector<int64_t> beats = Beats();
    const auto gone = std::count(beats.begin(), beats.end(), kLeft);
    if (gone + static_cast<int64_t>(silent.size()) >= options_.world_size || std::chrono::steady_clock::now() > deadline) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

}  // namespace membank
