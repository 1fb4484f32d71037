// A router in the test's process with fake workers behind real sockets and a fake path finder: leaf = length of the text modulo 16, in
// the private bank's tree modulo 2.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/bank/block.h"
#include "gtest/gtest.h"
#include "router/router_core.h"
#include "tests/router/fake_worker.h"

namespace membank {

class FakePathFinder : public PathFinder {
 public:
  std::vector<std::string> texts() const {  // that were resolved
    absl::MutexLock lock(&mu_);
    return texts_;
  }
  const std::vector<TreeFacts>& trees() const override { return trees_; }
  absl::StatusOr<std::vector<std::vector<Resolution>>> Resolve(const std::vector<std::string>& resolve) override {
    std::vector<std::vector<Resolution>> found;
    absl::MutexLock lock(&mu_);
    for (const std::string& text : resolve) {
      texts_.push_back(text);
      const uint32_t leaf = static_cast<uint32_t>(text.size() % 16), other = static_cast<uint32_t>(text.size() % 2);
      found.push_back({{{MemoryMode::kFetched, 2, leaf}, {{leaf / 4, 0.25f}, {leaf, 0.125f}}}, {{MemoryMode::kFetched, 1, other}, {{other, 0.5f}}}});
    }
    return found;
  }
  absl::StatusOr<std::vector<std::vector<float>>> Embed(const std::vector<std::string>& embed) override {
    std::vector<std::vector<float>> vectors;
    for (const std::string& text : embed) vectors.push_back({static_cast<float>(text.size()), 0.5f});
    return vectors;
  }

 private:
  std::vector<TreeFacts> trees_ = {{4, 2, 2, "tree", "embedder"}, {2, 1, 2, "private tree", "embedder"}};
  mutable absl::Mutex mu_;  // requests resolve at the same time
  std::vector<std::string> texts_ ABSL_GUARDED_BY(mu_);
};

struct RouterUnderTest {
  explicit RouterUnderTest(int count = 1, bool with_tree = true, int with_private_bank = 0) {
    WorkerPoolOptions options;
    options.poll_interval = std::chrono::milliseconds(20);
    options.tree_fingerprints = {"tree", "private tree"};
    for (int i = 0; i < count; ++i) {
      fakes.push_back(std::make_unique<FakeWorker>());
      fakes.back()->has_private_bank = i < with_private_bank;
      servers.push_back(RpcServer::Start({}, {fakes.back().get()}).value());
      options.workers.push_back(servers.back()->address());
    }
    pool = WorkerPool::Create(options).value();
    router = std::make_unique<Router>(*pool, with_tree ? &paths : nullptr);
    WaitFor([&] { return Healthy() == count; });
  }

  int Healthy() const {
    int healthy = 0;
    for (const v1::WorkerState& state : pool->States()) healthy += state.healthy();
    return healthy;
  }

  static bool WaitFor(const std::function<bool()>& condition, int ms = 5000) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(ms);
    while (!condition()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    return true;
  }

  FakeWorker& fake(int i = 0) { return *fakes[i]; }

  std::vector<std::unique_ptr<FakeWorker>> fakes;
  std::vector<std::unique_ptr<RpcServer>> servers;
  FakePathFinder paths;
  std::unique_ptr<WorkerPool> pool;
  std::unique_ptr<Router> router;
};

}  // namespace membank
