#include "router/readiness.h"

#include "gmock/gmock.h"
#include "tests/router/router_fixture.h"

namespace membank {
namespace {

using ::testing::HasSubstr;

TEST(ReadinessTest, StandsOnAHealthyWorkerAndListsThem) {
  RouterUnderTest router;
  const Readiness ready = CheckReadiness(*router.router);
  EXPECT_TRUE(ready.status.ok()) << ready.status;
  EXPECT_THAT(ready.details, HasSubstr("[+] worker 127.0.0.1"));
  router.fake().draining = true;
  EXPECT_TRUE(RouterUnderTest::WaitFor([&] { return !CheckReadiness(*router.router).status.ok(); }));
  EXPECT_THAT(CheckReadiness(*router.router).details, HasSubstr("[-] worker 127.0.0.1"));
}

}  // namespace
}  // namespace membank
