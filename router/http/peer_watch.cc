#include "router/http/peer_watch.h"

#include <poll.h>

#include <utility>
#include <vector>

namespace membank {
namespace {
constexpr absl::Duration kInterval = absl::Milliseconds(50);
}

PeerWatch::PeerWatch() : thread_([this] { Run(); }) {}

PeerWatch::~PeerWatch() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

std::shared_ptr<void> PeerWatch::Watch(int socket, std::function<void()> gone) {
  absl::MutexLock lock(&mu_);
  if (cancelled_) {
    gone();
    return nullptr;
  }
  const uint64_t id = next_++;
  entries_[id] = {socket, std::move(gone)};
  return std::shared_ptr<void>(nullptr, [this, id](void*) {
    absl::MutexLock lock(&mu_);
    entries_.erase(id);
  });
}

void PeerWatch::CancelAll() {
  absl::MutexLock lock(&mu_);
  cancelled_ = true;
  for (auto& [id, entry] : entries_) {
    if (entry.gone) std::exchange(entry.gone, nullptr)();
  }
}

void PeerWatch::Run() {
  absl::MutexLock lock(&mu_);
  while (!stopping_) {
    mu_.AwaitWithTimeout(absl::Condition(&stopping_), kInterval);
    CallGone();
  }
}

void PeerWatch::CallGone() {
  std::vector<pollfd> sockets;
  std::vector<Entry*> entries;
  for (auto& [id, entry] : entries_) {
    if (!entry.gone) continue;
    sockets.push_back({entry.socket, POLLRDHUP, 0});
    entries.push_back(&entry);
  }
  if (sockets.empty() || poll(sockets.data(), sockets.size(), 0) <= 0) return;
  for (size_t i = 0; i < sockets.size(); ++i) {
    if (sockets[i].revents & (POLLRDHUP | POLLHUP | POLLERR)) std::exchange(entries[i]->gone, nullptr)();
  }
}

}  // namespace membank
