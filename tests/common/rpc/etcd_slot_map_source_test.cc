// The slot map in a real etcd.
#include "common/rpc/etcd_slot_map_source.h"

#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "common/rpc/slot_map_location.h"
#include "gmock/gmock.h"
#include "tests/testing/certificates.h"
#include "tests/testing/etcd_process.h"

namespace membank {
namespace {

using ::testing::HasSubstr;
using testing_support::CertificateAuthority;
using testing_support::EtcdProcess;

SlotMap FirstMap() { return *SlotMap::Striped({{"m0", "h:0"}, {"m1", "h:1"}}); }

SlotMap Moved(const SlotMap& map, uint32_t slot) {
  SlotSet slots;
  slots.set(slot);
  return *map.Move(slots, {"m1", "h:1"}, {});
}

class EtcdSlotMapTest : public ::testing::Test {
 protected:
  static std::string Root() {
    return ::testing::TempDir() + "/etcd_slot_map_" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }

  std::unique_ptr<SlotMapSource> Source(const std::string& location, const TlsFiles& tls = {}) {
    auto source = OpenSlotMap(location, tls);
    EXPECT_TRUE(source.ok()) << source.status();
    return source.ok() ? *std::move(source) : nullptr;
  }

  EtcdProcess etcd_{Root()};
};

TEST_F(EtcdSlotMapTest, IsMadeOnceAndReplacedByEpoch) {
  ASSERT_TRUE(etcd_.Start().ok());
  const auto source = Source(etcd_.location());
  const absl::Status missing = source->Load().status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound) << missing;
  EXPECT_THAT(std::string(missing.message()), HasSubstr("slots init --output " + etcd_.location()));
  ASSERT_TRUE(source->Create(FirstMap()).ok());
  EXPECT_EQ(source->Create(FirstMap()).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(source->Load()->ToJson(), FirstMap().ToJson());
  const SlotMap second = Moved(FirstMap(), 0);
  EXPECT_TRUE(source->Replace(second).ok());
  const absl::Status again = source->Replace(second);
  EXPECT_EQ(again.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(again.message()), HasSubstr("has epoch 2, the new one is 2: somebody else changed it"));
  EXPECT_EQ(source->Load()->ToJson(), second.ToJson());

  // Of many at once one wins.
  std::atomic<int> won{0};
  std::vector<std::thread> threads;
  for (uint32_t i = 1; i <= 8; ++i)
    threads.emplace_back([&, i] {
      const absl::Status replaced = Source(etcd_.location())->Replace(Moved(second, 2 * i));
      if (replaced.ok()) ++won;
      else EXPECT_EQ(replaced.code(), absl::StatusCode::kFailedPrecondition) << replaced;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(won, 1);
  EXPECT_EQ(source->Load()->epoch(), 3u);
  EXPECT_EQ(source->Load()->SlotsOf("m1").count(), kSlots / 2 + 2);

  // Changes that depend on the map alone are made again.
  threads.clear();
  for (uint32_t i = 20; i < 24; ++i)
    threads.emplace_back([&, i] {
      const auto own = Source(etcd_.location());
      const auto changed = ChangeSlotMap(own.get(), [&](const SlotMap& map) { return absl::StatusOr<SlotMap>(Moved(map, 2 * i)); });
      EXPECT_TRUE(changed.ok()) << changed.status();
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(source->Load()->epoch(), 7u);
  EXPECT_EQ(source->Load()->SlotsOf("m1").count(), kSlots / 2 + 6);
}

TEST_F(EtcdSlotMapTest, ChangesAreSeenAtOnceAndStopWakes) {
  ASSERT_TRUE(etcd_.Start().ok());
  const auto source = Source(etcd_.location()), other = Source(etcd_.location());
  ASSERT_TRUE(other->Create(FirstMap()).ok());
  ASSERT_TRUE(source->Load().ok());
  const absl::Time begin = absl::Now();
  std::thread changing([&] {
    absl::SleepFor(absl::Milliseconds(300));
    EXPECT_TRUE(other->Replace(Moved(FirstMap(), 0)).ok());
  });
  source->AwaitChange();
  EXPECT_EQ(source->Load()->epoch(), 2u) << "it returned " << absl::Now() - begin << " after it began, the change came after 300 ms";
  changing.join();

  // The key is older than what etcd keeps: it is watched from now on, and nothing happens until Stop.
  const std::string etcdctl = "ETCDCTL_API=3 etcdctl --endpoints " + etcd_.address();
  for (const std::string command : {" put other 1", " put other 2", " compaction 5"}) {
    ASSERT_EQ(std::system((etcdctl + command + " >/dev/null").c_str()), 0);
  }
  ASSERT_TRUE(source->Load().ok());
  std::thread stopping([&] {
    absl::SleepFor(absl::Milliseconds(300));
    source->Stop();
  });
  const absl::Time waiting = absl::Now();
  source->AwaitChange();
  EXPECT_GT(absl::Now() - waiting, absl::Milliseconds(200));
  EXPECT_LT(absl::Now() - waiting, absl::Seconds(9)) << "without Stop it waits for 10 s";
  stopping.join();
}

TEST_F(EtcdSlotMapTest, IsThereAgainWhenEtcdIsBack) {
  ASSERT_TRUE(etcd_.Start().ok());
  const auto source = Source(etcd_.location());
  ASSERT_TRUE(source->Create(FirstMap()).ok());
  etcd_.Kill();
  const absl::Status away = source->Load().status();
  EXPECT_EQ(away.code(), absl::StatusCode::kUnavailable) << away;
  EXPECT_THAT(std::string(away.message()), HasSubstr("no member of etcd answers; " + etcd_.address()));
  EXPECT_EQ(source->Replace(Moved(FirstMap(), 0)).code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(etcd_.Start().ok());
  absl::StatusOr<SlotMap> back = source->Load();
  for (int i = 0; i < 600 && !back.ok(); ++i, back = source->Load()) absl::SleepFor(absl::Milliseconds(100));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(back->ToJson(), FirstMap().ToJson());
  EXPECT_TRUE(source->Replace(Moved(*back, 0)).ok());

  const auto with_a_dead_member = Source("etcd://127.0.0.1:1," + etcd_.address() + "/membank/slots");
  EXPECT_EQ(with_a_dead_member->Load()->epoch(), 2u);
  EXPECT_TRUE(with_a_dead_member->Replace(Moved(*with_a_dead_member->Load(), 2)).ok());
}

TEST_F(EtcdSlotMapTest, ShowsItsCertificate) {
  std::filesystem::create_directories(Root());
  CertificateAuthority authority(Root()), foreign(Root(), "foreign");
  EtcdProcess secure(Root(), authority.Issue("etcd", {"IP:127.0.0.1"}));
  ASSERT_TRUE(secure.Start().ok());
  const auto source = Source(secure.location(), authority.Issue("m0", {"DNS:m0"}));
  absl::Status created = source->Create(FirstMap());
  for (int i = 0; i < 300 && absl::IsUnavailable(created); ++i, created = source->Create(FirstMap())) absl::SleepFor(absl::Milliseconds(100));
  EXPECT_TRUE(created.ok()) << created;
  EXPECT_EQ(source->Load()->epoch(), 1u);
  for (const TlsFiles& tls : {TlsFiles{"", "", authority.file()}, foreign.Issue("mallory", {"DNS:m0"})}) {
    const absl::Status refused = Source(secure.location(), tls)->Load().status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable) << refused;
  }
}

TEST(SlotMapLocation, IsAFileOrAKeyOfEtcd) {
  EXPECT_TRUE(OpenSlotMap("/some/file", {}).ok());
  EXPECT_TRUE(OpenSlotMap("etcd://a:1,b:2/k", {}).ok());
  for (const std::string bad : {"", "etcd://", "etcd://a:1", "etcd://a:1/", "etcd:///k", "etcd://a/k", "etcd://a:1,/k"}) {
    EXPECT_EQ(OpenSlotMap(bad, {}).status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  const absl::Status bare = OpenSlotMap("etcds://a:1/k", {}).status();
  EXPECT_THAT(std::string(bare.message()), HasSubstr("--tls-authority"));
}

}  // namespace
}  // namespace membank
