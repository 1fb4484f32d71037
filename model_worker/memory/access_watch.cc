#include "model_worker/memory/access_watch.h"

#include <algorithm>
#include <numeric>

#include "absl/time/clock.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace membank {

AccessWatch::AccessWatch(Read read, uint32_t fan_out, absl::Duration lease) : read_(std::move(read)), fan_out_(fan_out), lease_(lease) {
  Look();
  thread_ = std::thread([this] { Run(); });
}

AccessWatch::~AccessWatch() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

uint64_t AccessWatch::epoch() const {
  absl::MutexLock lock(&mu_);
  return std::accumulate(epochs_.begin(), epochs_.end(), uint64_t{0});
}

absl::Status AccessWatch::CheckLease() const {
  absl::MutexLock lock(&mu_);
  if (absl::Now() - read_at_ <= lease_) return absl::OkStatus();
  return Unavailable("no memory server told within {} what is blocked, so cached blocks are not used: {}", absl::FormatDuration(lease_),
                     error_.ok() ? "the last look takes too long" : std::string(error_.message()));
}

bool AccessWatch::IsBlocked(BlockId id) const {
  absl::MutexLock lock(&mu_);
  return !table_.rules.empty() && table_.IsBlocked(id, fan_out_);
}

void AccessWatch::Look() {
  const absl::Time begin = absl::Now();
  absl::StatusOr<AccessView> view = read_(absl::ToChronoMilliseconds(lease_ / 5));
  absl::MutexLock lock(&mu_);
  error_ = view.status();
  if (!view.ok()) return;
  read_at_ = begin;
  epochs_.resize(std::max(epochs_.size(), view->epochs.size()));
  for (size_t i = 0; i < view->epochs.size(); ++i) epochs_[i] = std::max(epochs_[i], view->epochs[i]);
  if (view->table.epoch <= table_.epoch) return;
  LOG_INFO("access epoch {}: cached blocks are asked for again", view->table.epoch);
  table_ = std::move(view->table);
}

void AccessWatch::Run() {
  while (true) {
    {
      absl::MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&stopping_), lease_ / 5)) return;
    }
    Look();
  }
}

}  // namespace membank
