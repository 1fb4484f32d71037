#include "model_worker/memory/access_watch.h"

#include "absl/synchronization/mutex.h"
#include "common/base/status_macros.h"
#include "gtest/gtest.h"

namespace membank {
namespace {

// Servers that answer with a table, or not at all.
class Servers {
 public:
  absl::StatusOr<AccessView> Read() {
    absl::MutexLock lock(&mu_);
    if (!error_.ok()) return error_;
    return view_;
  }
  void Answer(const AccessTable& table, const std::vector<uint64_t>& epochs) {
    absl::MutexLock lock(&mu_);
    view_ = {table, epochs};
    error_ = absl::OkStatus();
  }
  void Fail(const absl::Status& error) {
    absl::MutexLock lock(&mu_);
    error_ = error;
  }
  AccessWatch::Read reader() {
    return [this](std::chrono::milliseconds) { return Read(); };
  }

 private:
  absl::Mutex mu_;
  AccessView view_;
  absl::Status error_;
};

AccessTable Blocking(TreePrefix prefix, uint64_t epoch) {
  AccessTable table;
  table.epoch = epoch;
  table.SetBlocked(prefix, true);
  return table;
}

bool Within(absl::Duration time, const std::function<bool()>& reached) {
  for (const absl::Time end = absl::Now() + time; absl::Now() < end; absl::SleepFor(absl::Milliseconds(2))) {
    if (reached()) return true;
  }
  return reached();
}

TEST(AccessWatch, LearnsWhatIsBlockedAndKeepsIt) {
  Servers servers;
  AccessWatch watch(servers.reader(), 4, absl::Seconds(1));
  EXPECT_EQ(watch.epoch(), 0u);
  EXPECT_TRUE(watch.CheckLease().ok());
  EXPECT_FALSE(watch.IsBlocked({2, 5}));
  servers.Answer(Blocking({1, 1}, 3), {3});
  EXPECT_TRUE(Within(absl::Seconds(5), [&] { return watch.epoch() == 3; }));
  EXPECT_TRUE(watch.IsBlocked({2, 5}));
  EXPECT_FALSE(watch.IsBlocked({2, 8}));
  servers.Answer(AccessTable(), {0});  // a server that lags behind does not take it back
  absl::SleepFor(absl::Milliseconds(500));
  EXPECT_EQ(watch.epoch(), 3u);
}

TEST(AccessWatch, AServerThatTakesAChangeOverLaterIsAChange) {
  Servers servers;
  servers.Answer(Blocking({1, 1}, 3), {3, 3});
  AccessWatch watch(servers.reader(), 4, absl::Milliseconds(250));
  const uint64_t begin = watch.epoch();
  servers.Answer(Blocking({1, 2}, 4), {4, 3});
  EXPECT_TRUE(Within(absl::Seconds(5), [&] { return watch.epoch() > begin; }));
  EXPECT_TRUE(watch.IsBlocked({1, 2}));
  const uint64_t first_has_it = watch.epoch();
  servers.Answer(Blocking({1, 2}, 4), {4, 0});  // does not answer
  absl::SleepFor(absl::Milliseconds(200));
  EXPECT_EQ(watch.epoch(), first_has_it);
  servers.Answer(Blocking({1, 2}, 4), {0, 4});
  EXPECT_TRUE(Within(absl::Seconds(5), [&] { return watch.epoch() > first_has_it; }));
}

TEST(AccessWatch, TheLeaseEndsWhenNobodyAnswersAndComesBack) {
  Servers servers;
  AccessWatch watch(servers.reader(), 4, absl::Milliseconds(250));
  EXPECT_TRUE(watch.CheckLease().ok());
  servers.Fail(Unavailable("m0 is away"));
  EXPECT_TRUE(Within(absl::Seconds(2), [&] { return !watch.CheckLease().ok(); }));
  EXPECT_EQ(watch.CheckLease().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(watch.CheckLease().message().find("m0 is away"), std::string::npos);
  servers.Answer(AccessTable(), {0});
  EXPECT_TRUE(Within(absl::Seconds(2), [&] { return watch.CheckLease().ok(); }));
}

}  // namespace
}  // namespace membank
