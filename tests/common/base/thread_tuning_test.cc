#include "common/base/thread_tuning.h"

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <functional>
#include <string>

#include "gtest/gtest.h"

namespace membank {
namespace {

int ExitCodeOf(const std::function<void()>& child_work) {
  const pid_t child = fork();
  if (child == 0) {
    unsetenv("GOMP_SPINCOUNT");
    unsetenv("OMP_WAIT_POLICY");
    child_work();
    _exit(99);   // TuneThreads came back
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void Tune() {
  char name[] = "test", filter[] = "--gtest_filter=ThreadTuningTest.RestartedProgramSpinsShortly";
  char* argv[] = {name, filter, nullptr};
  TuneThreads(argv);
}

TEST(ThreadTuningTest, StartsTheProgramAgain) {
  EXPECT_EQ(ExitCodeOf([] {
              setenv("MEMBANK_TEST_RESTARTED", "1", 1);
              Tune();
            }), 0);
}

TEST(ThreadTuningTest, RestartedProgramSpinsShortly) {
  if (std::getenv("MEMBANK_TEST_RESTARTED") == nullptr) GTEST_SKIP() << "runs in the child of StartsTheProgramAgain";
  const char* spin = std::getenv("GOMP_SPINCOUNT");
  ASSERT_NE(spin, nullptr);
  EXPECT_EQ(std::string(spin), "2000");
}

TEST(ThreadTuningTest, WhatTheEnvironmentSaysStays) {
  EXPECT_EQ(ExitCodeOf([] {
              setenv("OMP_WAIT_POLICY", "active", 1);
              Tune();
            }), 99);
}

}  // namespace
}  // namespace membank
