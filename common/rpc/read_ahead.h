// Lets gRPC receive the next message of a stream while the one before is being worked on: copying and checking a chunk takes about as long
// as receiving it. For a callback reactor, whose OnReadDone hands over what came; one of gRPC's threads at a time is the worker:
//
//   void OnReadDone(bool ok) override { if (ahead_.Arrived(ok)) Work(); }
//   void Work() {
//     while (auto message = ahead_.Next()) {   // empty: the worker is done for now; OnReadDone will make another one
//       if (message->ended) return Finish(...);
//       StartRead(ahead_.incoming());          // before the work
//       ...
//     }
//   }
// Start the first read with incoming(). Thread-safe; only the worker reads, stops and finishes, so these stay in order.
#pragma once

#include <optional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/support/byte_buffer.h"

namespace membank {

struct ReadAheadMessage {
  bool ended = false;  // no message came: the stream is over
  grpc::ByteBuffer bytes;
};

class ReadAhead {
 public:
  grpc::ByteBuffer* incoming() { return &incoming_; }

  // True: the caller is the worker now.
  bool Arrived(bool ok) ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    if (stopped_) return false;
    arrived_.emplace();
    arrived_->ended = !ok;
    arrived_->bytes.Swap(&incoming_);
    return !std::exchange(working_, true);
  }

  std::optional<ReadAheadMessage> Next() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    working_ = arrived_.has_value();
    std::optional<ReadAheadMessage> next;
    if (!working_) return next;
    next.emplace();
    next->ended = arrived_->ended;
    next->bytes.Swap(&arrived_->bytes);
    arrived_.reset();
    return next;
  }

  // The worker: whatever still arrives is dropped.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_) {
    absl::MutexLock lock(&mu_);
    stopped_ = true;
    arrived_.reset();
  }

 private:
  grpc::ByteBuffer incoming_;  // of the read in flight; nobody else touches it
  absl::Mutex mu_;
  std::optional<ReadAheadMessage> arrived_ ABSL_GUARDED_BY(mu_);
  bool working_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace membank
