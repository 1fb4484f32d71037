#include "common/base/thread_pool.h"

#include "absl/synchronization/blocking_counter.h"

namespace membank {

ThreadPool::ThreadPool(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { Run(); });
}

ThreadPool::~ThreadPool() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Schedule(std::function<void()> work) {
  absl::MutexLock lock(&mu_);
  queue_.push_back(std::move(work));
}

void ThreadPool::Run() {
  while (true) {
    std::function<void()> work;
    {
      absl::MutexLock lock(&mu_);
      auto ready = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || !queue_.empty(); };
      mu_.Await(absl::Condition(&ready));
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    work();
  }
}

void ParallelFor(ThreadPool& pool, size_t count, const std::function<void(size_t)>& work) {
  if (count == 0) return;
  absl::BlockingCounter pending(static_cast<int>(count - 1));
  for (size_t i = 0; i + 1 < count; ++i) {
    pool.Schedule([&, i] {
      work(i);
      pending.DecrementCount();
    });
  }
  work(count - 1);
  pending.Wait();
}

}  // namespace membank
