#include "common/rpc/service_process.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include "absl/time/clock.h"

namespace membank {
namespace {

// Serves with a signal that waits already; `drain` runs at once.
void ServeAndDrain(std::function<void(absl::Time)> drain) {
  ServiceOptions options;
  options.listen = "127.0.0.1:0";
  options.drain_timeout_ms = 20000;
  auto process = ServiceProcess::Start(options);
  if (!process.ok()) _exit(99);
  kill(getpid(), SIGTERM);
  ServiceWork work;
  work.drain = std::move(drain);
  _exit((*process)->ServeUntilStopped(work).ok() ? 0 : 98);
}

class ServiceProcessDeathTest : public ::testing::Test {
 protected:
  ServiceProcessDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(ServiceProcessDeathTest, ASignalDrains) { EXPECT_EXIT(ServeAndDrain([](absl::Time) {}), ::testing::ExitedWithCode(0), ""); }

TEST_F(ServiceProcessDeathTest, ASecondSignalEndsAtOnce) {
  const absl::Time begin = absl::Now();
  for (const int second : {SIGINT, SIGTERM}) {
    const auto drain = [second](absl::Time deadline) {
      kill(getpid(), second);
      absl::SleepFor(deadline - absl::Now());
    };
    EXPECT_EXIT(ServeAndDrain(drain), ::testing::KilledBySignal(second), "");
  }
  EXPECT_LT(absl::Now() - begin, absl::Seconds(15));
}

}  // namespace
}  // namespace membank
