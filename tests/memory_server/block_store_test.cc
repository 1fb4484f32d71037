// The conformance suite of BlockStore: every engine passes it.
#include "memory_server/block_store.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "common/base/bytes.h"
#include "common/base/status_macros.h"
#include "memory_server/in_memory_block_store.h"
#include "memory_server/rocksdb_store.h"

namespace membank {
namespace {

struct Engine {
  const char* name;
  OpenBlockStore open;
};

class BlockStoreTest : public ::testing::TestWithParam<Engine> {
 protected:
  BlockStoreTest() : root_(testing::TempDir() + "/block_store." + std::to_string(::getpid())) {
    std::filesystem::remove_all(root_);
    std::filesystem::create_directories(root_);
  }
  ~BlockStoreTest() override { std::filesystem::remove_all(root_); }

  std::unique_ptr<BlockStore> Open(const std::string& name, StoreAccess access = StoreAccess::kReadWrite) {
    auto store = GetParam().open(root_ + "/" + name, access);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }
  static absl::StatusOr<std::string> Get(BlockStore& store, std::string_view key) {
    std::string value;
    const absl::Status status = store.Get(key, [&](absl::Span<const uint8_t> bytes) { value.assign(bytes.begin(), bytes.end()); });
    if (!status.ok()) return status;
    return value;
  }
  static std::vector<std::string> Keys(BlockStore& store, std::string_view prefix) {
    std::vector<std::string> keys;
    EXPECT_TRUE(store.Scan(prefix, [&](std::string_view key, absl::Span<const uint8_t>) {
                       keys.emplace_back(key);
                       return absl::OkStatus();
                     }).ok());
    return keys;
  }
  const std::string root_;
};

const std::string kBinaryKey("b\0\xff\0\n", 5);

TEST_P(BlockStoreTest, PutGetDelete) {
  auto store = Open("a");
  EXPECT_EQ(Get(*store, "x").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(store->Put(kBinaryKey, AsBytes("one")).ok());
  EXPECT_TRUE(store->Put(kBinaryKey, AsBytes("two")).ok());
  EXPECT_TRUE(store->Put("empty", {}).ok());
  EXPECT_EQ(*Get(*store, kBinaryKey), "two");
  EXPECT_EQ(*Get(*store, "empty"), "");
  EXPECT_TRUE(store->Delete(kBinaryKey).ok());
  EXPECT_TRUE(store->Delete("never there").ok());
  EXPECT_EQ(Get(*store, kBinaryKey).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(BlockStoreTest, AValueIsTheConcatenationOfItsParts) {
  auto store = Open("a");
  ASSERT_TRUE(store->Put("old", AsBytes("value")).ok());
  const std::string large(3 << 20, 'z');
  const std::vector<BlockStore::Write> batch = {{"k", {AsBytes("head"), {}, AsBytes(large)}}, {"old", {}, true}, {"l", {AsBytes("x")}}};
  ASSERT_TRUE(store->Apply(batch).ok());
  EXPECT_EQ(*Get(*store, "k"), "head" + large);
  EXPECT_EQ(*Get(*store, "l"), "x");
  EXPECT_EQ(Get(*store, "old").status().code(), absl::StatusCode::kNotFound);
}

TEST_P(BlockStoreTest, ABatchIsAtomicToReaders) {
  auto store = Open("a");
  std::atomic<bool> stop = false;
  ASSERT_TRUE(store->Apply(std::vector<BlockStore::Write>{{"x", {AsBytes("0")}}, {"y", {AsBytes("0")}}}).ok());
  std::thread writer([&] {
    for (int i = 1; i < 2000; ++i) {
      const std::string number = std::to_string(i);
      EXPECT_TRUE(store->Apply(std::vector<BlockStore::Write>{{"x", {AsBytes(number)}}, {"y", {AsBytes(number)}}}).ok());
    }
    stop = true;
  });
  while (!stop) {
    std::vector<std::string> values;
    EXPECT_TRUE(store->Scan("", [&](std::string_view, absl::Span<const uint8_t> value) {
                       values.emplace_back(value.begin(), value.end());
                       return absl::OkStatus();
                     }).ok());
    EXPECT_EQ(values.size(), 2u);
    EXPECT_EQ(values.front(), values.back());
  }
  writer.join();
}

TEST_P(BlockStoreTest, ScansAscendWithinThePrefixAndStopOnError) {
  auto store = Open("a");
  for (const char* key : {"c", "b2", "b10", "a", "b", "b\xff"}) ASSERT_TRUE(store->Put(key, AsBytes(key)).ok());
  EXPECT_EQ(Keys(*store, "b"), (std::vector<std::string>{"b", "b10", "b2", "b\xff"}));
  EXPECT_EQ(Keys(*store, "").size(), 6u);
  EXPECT_TRUE(Keys(*store, "d").empty());
  int visited = 0;
  const absl::Status stopped = store->Scan("b", [&](std::string_view, absl::Span<const uint8_t>) {
    return ++visited == 2 ? absl::AbortedError("enough") : absl::OkStatus();
  });
  EXPECT_EQ(stopped.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(visited, 2);
}

TEST_P(BlockStoreTest, FlushedValuesSurviveReopening) {
  {
    auto store = Open("a");
    ASSERT_TRUE(store->Put("k", AsBytes("v")).ok());
    ASSERT_TRUE(store->Flush().ok());
  }
  EXPECT_EQ(*Get(*Open("a"), "k"), "v");
}

TEST_P(BlockStoreTest, ACutIsDurableWholeAndNeverChanges) {
  auto store = Open("a");
  ASSERT_TRUE(store->Put("k", AsBytes("before")).ok());
  ASSERT_TRUE(store->Cut(root_ + "/cut").ok());
  EXPECT_EQ(store->Cut(root_ + "/cut").code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(store->Put("k", AsBytes("after")).ok());
  ASSERT_TRUE(store->Put("l", AsBytes("later")).ok());
  ASSERT_TRUE(store->Flush().ok());
  auto cut = Open("cut", StoreAccess::kReadOnly);
  EXPECT_EQ(*Get(*cut, "k"), "before");
  EXPECT_EQ(Keys(*cut, ""), (std::vector<std::string>{"k"}));
  EXPECT_EQ(*Get(*store, "k"), "after");
}

// Values of both sizes (large ones have files of their own), older values, and values that only the engine's memory has.
TEST_P(BlockStoreTest, ErasedKeysLeaveNoBytesBehind) {
  auto store = Open("a");
  const auto value = [](int version, char key, size_t size) {
    std::string text;
    while (text.size() < size) text += fmt::format("<{} of version {}>", key, version);
    return text;
  };
  const auto files_hold = [&](const std::string& directory, const std::string& text) {
    for (const auto& entry : std::filesystem::directory_iterator(directory)) {
      std::ifstream in(entry.path(), std::ios::binary);
      const std::string all((std::istreambuf_iterator<char>(in)), {});
      if (all.find(text) != std::string::npos) return true;
    }
    return false;
  };
  for (int version = 1; version <= 3; ++version) {
    for (char key = 'a'; key <= 'h'; ++key)
      ASSERT_TRUE(store->Put(std::string(1, key), AsBytes(value(version, key, key % 2 == 0 ? 1000 : 700 << 10))).ok());
    ASSERT_TRUE(version == 3 || store->Flush().ok());
    ASSERT_TRUE(version != 2 || store->Cut(root_ + "/cut").ok());
  }
  ASSERT_TRUE(files_hold(root_ + "/a", "<c of version")) << "the search finds what is there";
  const absl::Status erased = store->Erase("c", "f");
  ASSERT_TRUE(erased.ok()) << erased;
  EXPECT_EQ(Keys(*store, ""), (std::vector<std::string>{"a", "b", "f", "g", "h"}));
  for (char key = 'c'; key < 'f'; ++key) EXPECT_FALSE(files_hold(root_ + "/a", fmt::format("<{} of version", key))) << key;
  EXPECT_EQ(*Get(*store, "f"), value(3, 'f', 1000));
  EXPECT_EQ(*Get(*store, "g"), value(3, 'g', 700 << 10));
  EXPECT_TRUE(store->Erase("c", "f").ok()) << "again";
  auto cut = Open("cut", StoreAccess::kReadOnly);
  EXPECT_EQ(*Get(*cut, "c"), value(2, 'c', 700 << 10)) << "a cut has the files to itself";
  EXPECT_EQ(cut->Erase("a", "b").code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(BlockStoreTest, ReadOnlyStoresRefuseWritesAndMissingOnesAreNotFound) {
  EXPECT_EQ(GetParam().open(root_ + "/none", StoreAccess::kReadOnly).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(Open("a")->Cut(root_ + "/cut").ok());
  auto cut = Open("cut", StoreAccess::kReadOnly);
  EXPECT_EQ(cut->Put("k", AsBytes("v")).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cut->Delete("k").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cut->Apply(std::vector<BlockStore::Write>{{"k", {}}}).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(BlockStoreTest, DamageIsFoundAndNamesTheStore) {
  {
    auto store = Open("a");
    ASSERT_TRUE(store->Put("k", AsBytes(std::string(100000, 'q'))).ok());
    ASSERT_TRUE(store->Cut(root_ + "/cut").ok());
  }
  std::filesystem::path largest;
  for (const auto& entry : std::filesystem::directory_iterator(root_ + "/cut"))
    if (largest.empty() || entry.file_size() > std::filesystem::file_size(largest)) largest = entry.path();
  std::fstream file(largest, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(50000);
  file.put('Q');
  file.close();
  auto opened = GetParam().open(root_ + "/cut", StoreAccess::kReadOnly);
  const absl::Status status = opened.ok() ? Get(**opened, "k").status() : opened.status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  EXPECT_NE(std::string(status.message()).find(root_ + "/cut"), std::string::npos) << status;
}

INSTANTIATE_TEST_SUITE_P(Engines, BlockStoreTest,
                         ::testing::Values(Engine{"RocksDb", RocksDbStore::Open}, Engine{"InMemory", InMemoryBlockStore::Open}),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace membank
