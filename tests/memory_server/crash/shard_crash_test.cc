// A shard that dies at every single change of its directory: a child process runs through runs, steps, checkpoints, garbage collection, restore,
// publishing and a purge, and ends with _exit before its n-th mkdir, rename, link, unlink, fsync, ... for n = 1, 2, ... until it gets through. After each
// death the parent opens what is left: it is the state before or after the operation that was under way, every checkpoint listed is whole,
// nothing half lies about, and training goes on. The system calls are caught by defining them here.
#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "memory_server/shard.h"
#include "tests/memory_server/crash/dying.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {
int calls_left = 0;
}

namespace {

void Count() {
  if (membank::calls_left > 0 && --membank::calls_left == 0) _exit(membank::kDied);
}

template <typename Function>
Function Next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" {
int rename(const char* from, const char* to) noexcept { return Count(), Next<int (*)(const char*, const char*)>("rename")(from, to); }
int link(const char* from, const char* to) noexcept { return Count(), Next<int (*)(const char*, const char*)>("link")(from, to); }
int unlink(const char* path) noexcept { return Count(), Next<int (*)(const char*)>("unlink")(path); }
int unlinkat(int fd, const char* path, int flags) noexcept { return Count(), Next<int (*)(int, const char*, int)>("unlinkat")(fd, path, flags); }
int remove(const char* path) noexcept { return Count(), Next<int (*)(const char*)>("remove")(path); }
int rmdir(const char* path) noexcept { return Count(), Next<int (*)(const char*)>("rmdir")(path); }
int mkdir(const char* path, mode_t mode) noexcept { return Count(), Next<int (*)(const char*, mode_t)>("mkdir")(path, mode); }
int ftruncate(int fd, off_t size) noexcept { return Count(), Next<int (*)(int, off_t)>("ftruncate")(fd, size); }
ssize_t pwrite(int fd, const void* bytes, size_t size, off_t offset) {
  return Count(), Next<ssize_t (*)(int, const void*, size_t, off_t)>("pwrite")(fd, bytes, size, offset);
}
int fsync(int) { return Count(), 0; }  // what a process wrote outlives it anyway
int fdatasync(int) { return Count(), 0; }
}

namespace membank {
namespace {

constexpr char kPurge[] = "purge 1.1";
constexpr BlockId kPurged = {2, 4};
constexpr float kSecret = 1234.5f;  // all over the block and its gradients

struct Operation {
  const char* name;
  std::function<absl::Status(ShardFixture&)> run;
  // What a crash after it comes back to: (head, count of block 1/0), with durability class checkpoint and step.
  std::pair<uint64_t, float> checkpoint, step;
};

absl::Status BeginAndTrain(ShardFixture& f, uint64_t epoch, uint64_t step, float value) {
  RETURN_IF_ERROR(f.Begin(epoch));
  return f.Train(step, {{{1, 0}, value}});
}

std::vector<Operation> Operations() {
  return {
      {"open", [](ShardFixture& f) { return f.TryOpen(); }, {0, 0}, {0, 0}},
      {"step 1", [](ShardFixture& f) { return BeginAndTrain(f, 1, 1, 1); }, {0, 0}, {1, 1}},
      {"prepare c1", [](ShardFixture& f) { return f.shard->PrepareCheckpoint("c1", 1); }, {0, 0}, {1, 1}},
      {"commit c1", [](ShardFixture& f) { return f.shard->CommitCheckpoint("c1"); }, {1, 1}, {1, 1}},
      {"step 2", [](ShardFixture& f) { return f.Train(2, {{{1, 0}, 2}, {kPurged, kSecret}}); }, {1, 1}, {2, 3}},
      {"prepare c2", [](ShardFixture& f) { return f.shard->PrepareCheckpoint("c2", 2); }, {1, 1}, {2, 3}},
      {"commit c2, c1 goes", [](ShardFixture& f) { return f.shard->CommitCheckpoint("c2", 1); }, {2, 3}, {2, 3}},
      {"prepare c3", [](ShardFixture& f) { return f.shard->PrepareCheckpoint("c3", 2); }, {2, 3}, {2, 3}},
      {"abort c3", [](ShardFixture& f) { return f.shard->AbortCheckpoint("c3"); }, {2, 3}, {2, 3}},
      {"step 3", [](ShardFixture& f) { return f.Train(3, {{{1, 0}, 3}}); }, {2, 3}, {3, 6}},
      {"prepare c4", [](ShardFixture& f) { return f.shard->PrepareCheckpoint("c4", 3); }, {2, 3}, {3, 6}},
      {"commit c4", [](ShardFixture& f) { return f.shard->CommitCheckpoint("c4", 2); }, {3, 6}, {3, 6}},
      {"publish", [](ShardFixture& f) { return f.shard->Publish("c4", "v1"); }, {3, 6}, {3, 6}},
      {"publish as int8", [](ShardFixture& f) { return f.shard->Publish("c4", "v1-int8", PayloadType::kI8Rows); }, {3, 6}, {3, 6}},
      {"step 4", [](ShardFixture& f) { return f.Train(4, {{{1, 0}, 4}, {kPurged, kSecret}}); }, {3, 6}, {4, 10}},
      {kPurge, [](ShardFixture& f) { return f.shard->Purge({1, 1}).status(); }, {3, 6}, {4, 10}},
      {"restore c2", [](ShardFixture& f) { return f.shard->RestoreCheckpoint("c2"); }, {2, 3}, {2, 3}},
      {"delete c4", [](ShardFixture& f) { return f.shard->DeleteCheckpoint("c4"); }, {2, 3}, {2, 3}},
      {"step 3 again", [](ShardFixture& f) { return BeginAndTrain(f, 2, 3, 30); }, {2, 3}, {3, 33}},
      {"checkpoint c5", [](ShardFixture& f) { return f.Checkpoint("c5"); }, {3, 33}, {3, 33}},
  };
}

class ShardCrashTest : public ::testing::TestWithParam<Durability> {
 protected:
  // Runs all operations in a child that dies before its n-th system call; how many were done. All of them: it got through.
  size_t RunAndDie(ShardFixture& fixture, int n) {
    auto* const done = SharedWithChild<size_t>();
    DiesAtCall(n, [&] {
      for (const Operation& operation : Operations()) {
        const absl::Status status = operation.run(fixture);
        if (!status.ok()) return std::fprintf(stderr, "%s: %s\n", operation.name, status.ToString().c_str()), false;
        ++*done;
      }
      return true;
    });
    const size_t operations = *done;
    ::munmap(done, sizeof(size_t));
    return operations;
  }

  std::pair<uint64_t, float> After(size_t done) const {
    const std::vector<Operation> operations = Operations();
    if (done == 0) return {0, 0};
    const Operation& last = operations[std::min(done, operations.size()) - 1];
    return GetParam() == Durability::kStep ? last.step : last.checkpoint;
  }

  static bool FilesHoldSecret(const std::string& directory) {
    for (const float value : {kSecret, -kSecret, -2 * kSecret}) {
      const std::vector<float> values(4, value);
      const std::string_view secret(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
      for (const auto& entry : std::filesystem::recursive_directory_iterator(directory))
        if (entry.is_regular_file() && ReadFile(entry.path())->find(secret) != std::string::npos) return true;
    }
    return false;
  }

  // Once the purge has begun and somebody saw it, and at the latest when it is done, the block and its bytes are gone.
  void ExpectPurged(ShardFixture& fixture, size_t done) {
    const std::vector<Operation> operations = Operations();
    const size_t purge = std::find_if(operations.begin(), operations.end(), [](const Operation& o) { return o.name == kPurge; }) - operations.begin();
    const bool secret = FilesHoldSecret(fixture.options.data_directory);
    if (done > purge) {
      ASSERT_FALSE(secret);
    }
    if (done == purge) {
      ASSERT_EQ(fixture.shard->Read(kPurged)->version > 0, secret);
      secret ? ++purges_.first : ++purges_.second;
    }
  }

  std::pair<int, int> purges_;  // of those that were interrupted: not begun, finished by the restart

  void ExpectWhole(ShardFixture& fixture, size_t done) {
    ASSERT_OK(fixture.TryOpen());
    const std::pair<uint64_t, float> found{fixture.shard->Status().head_step, fixture.Count({1, 0})};
    ASSERT_TRUE(found == After(done) || found == After(done + 1)) << "head " << found.first << ", count " << found.second;
    ASSERT_NO_FATAL_FAILURE(ExpectPurged(fixture, done));
    for (const CheckpointInfo& info : fixture.shard->ListCheckpoints()) {
      const auto damage = fixture.shard->VerifyCheckpoint(info.id);
      ASSERT_OK(damage);
      ASSERT_TRUE(damage->empty()) << info.id << ": " << damage->front();
    }
    for (const BankVersion& version : fixture.shard->ListVersions()) ASSERT_OK(fixture.shard->ReadVersion(version.name, {1, 0}));
    for (const char* directory : {"/checkpoints", "/versions"})
      for (const auto& entry : std::filesystem::directory_iterator(fixture.options.data_directory + directory))
        ASSERT_NE(entry.path().filename().string()[0], '.') << entry.path() << " was left lying about";
    ASSERT_OK(fixture.Begin(9));
    ASSERT_OK(fixture.Train(found.first + 1, {{{1, 0}, 100}}));
    ASSERT_OK(fixture.Checkpoint("after"));
    ASSERT_OK(fixture.TryOpen());
    ASSERT_EQ(fixture.Count({1, 0}), found.second + 100);
    fixture.shard.reset();
  }
};

TEST_P(ShardCrashTest, WhereverItDiesTheStateIsTheOneBeforeOrAfterTheOperation) {
  int n = 1;
  for (size_t done = 0; done < Operations().size(); ++n) {
    ShardFixture fixture;
    fixture.options.durability = GetParam();
    fixture.options.optimizer_threads = 1;
    done = RunAndDie(fixture, n);
    const char* during = done < Operations().size() ? Operations()[done].name : "nothing";
    ASSERT_NO_FATAL_FAILURE(ExpectWhole(fixture, done)) << "died before system call " << n << ", during: " << during;
  }
  std::printf("died at %d places\n", n - 2);
  EXPECT_GT(n, 80);
  std::printf("of the purges that it died in, %d had not begun, %d were finished by the restart\n", purges_.first, purges_.second);
  EXPECT_GT(purges_.first, 0);
  EXPECT_GT(purges_.second, 5);
}

INSTANTIATE_TEST_SUITE_P(Classes, ShardCrashTest, ::testing::Values(Durability::kCheckpoint, Durability::kStep),
                         [](const auto& info) { return info.param == Durability::kStep ? "Step" : "Checkpoint"; });

}  // namespace
}  // namespace membank
