#include "common/rpc/read_ahead.h"

#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "gtest/gtest.h"

namespace membank {
namespace {

// Plays gRPC: a read that is started is answered on another thread, in order; the stream ends after `count` messages.
class Reactor {
 public:
  explicit Reactor(int count) : count_(count) {}
  ~Reactor() {
    absl::MutexLock lock(&mu_);
    for (std::thread& thread : threads_) thread.join();
  }

  void StartRead() {
    EXPECT_FALSE(reading_.exchange(true)) << "two reads at once";
    const int index = next_++;
    absl::MutexLock lock(&mu_);
    threads_.emplace_back([this, index] {
      if (index < count_) {
        grpc::Slice slice(std::to_string(index));
        grpc::ByteBuffer message(&slice, 1);
        ahead_.incoming()->Swap(&message);
      }
      reading_ = false;
      if (ahead_.Arrived(index < count_)) Work();
    });
  }

  void AwaitEnd() {
    while (!over_) std::this_thread::yield();
  }

  ReadAhead ahead_;
  std::vector<std::string> received_;
  int stop_after_ = -1;
  std::atomic<bool> over_{false};

 private:
  void Work() {
    while (const auto message = ahead_.Next()) {
      EXPECT_FALSE(working_.exchange(true)) << "two workers at once";
      if (message->ended) {
        working_ = false;
        over_ = true;
        return;
      }
      StartRead();
      std::vector<grpc::Slice> slices;
      EXPECT_TRUE(message->bytes.Dump(&slices).ok());
      received_.emplace_back(slices.at(0).begin(), slices.at(0).end());
      working_ = false;
      if (static_cast<int>(received_.size()) == stop_after_) {
        ahead_.Stop();
        over_ = true;
        return;
      }
    }
  }

  const int count_;
  int next_ = 0;
  std::atomic<bool> reading_{false}, working_{false};
  absl::Mutex mu_;
  std::vector<std::thread> threads_ ABSL_GUARDED_BY(mu_);  // the first one starts the second before its own start has returned
};

TEST(ReadAheadTest, MessagesComeInOrderToOneWorkerAtATime) {
  Reactor reactor(500);
  reactor.StartRead();
  reactor.AwaitEnd();
  ASSERT_EQ(reactor.received_.size(), 500u);
  for (int i = 0; i < 500; ++i) EXPECT_EQ(reactor.received_[i], std::to_string(i));
}

TEST(ReadAheadTest, AfterStopNothingIsHandedOut) {
  Reactor reactor(500);
  reactor.stop_after_ = 20;
  reactor.StartRead();
  reactor.AwaitEnd();
  EXPECT_EQ(reactor.received_.size(), 20u);
  EXPECT_FALSE(reactor.ahead_.Next());
}

}  // namespace
}  // namespace membank
