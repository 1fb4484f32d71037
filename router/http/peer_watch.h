// Tells running requests that their client closed the connection. One thread polls the sockets of all registered requests.
// Thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace membank {

class PeerWatch {
 public:
  PeerWatch();
  ~PeerWatch();

  // While the returned object lives: `gone` is called once when the peer of `socket` has closed; after it is destroyed, never again.
  std::shared_ptr<void> Watch(int socket, std::function<void()> gone) ABSL_LOCKS_EXCLUDED(mu_);

  // Calls every `gone`, and that of every later Watch at once.
  void CancelAll() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Entry {
    int socket;
    std::function<void()> gone;
  };
  void Run() ABSL_LOCKS_EXCLUDED(mu_);
  void CallGone() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Mutex mu_;
  std::map<uint64_t, Entry> entries_ ABSL_GUARDED_BY(mu_);
  uint64_t next_ ABSL_GUARDED_BY(mu_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace membank
