// Processes that end with _exit before their n-th change of a file or directory: shard_crash_test.cc stands in front of the system calls.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

namespace membank {

inline constexpr int kDied = 42;
extern int calls_left;  // 0: not counting

// Runs `work` in a child that dies before its n-th call; false when it got through. `work` returns false to fail the test.
inline bool DiesAtCall(int n, const std::function<bool()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    calls_left = n;
    _exit(work() ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == kDied)) << "wait status " << status << " at call " << n;
  return WIFEXITED(status) && WEXITSTATUS(status) == kDied;
}

// What a child tells its parent: zeroed memory of both.
template <typename T>
T* SharedWithChild() {
  return static_cast<T*>(::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
}

}  // namespace membank
