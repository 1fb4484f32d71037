#include "common/rpc/status.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "membank/v1/types.pb.h"

namespace membank {
namespace {

TEST(Status, EveryCodeComesBackAsItself) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), code == 0 ? "" : "what went wrong");
    const grpc::Status outside = ToGrpc(status);
    EXPECT_EQ(static_cast<int>(outside.error_code()), code);
    EXPECT_EQ(FromGrpc(outside), status);
  }
}

TEST(Status, ThePeerStandsInFrontOfTheMessage) {
  EXPECT_EQ(FromGrpc(grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone"), "m0 at h:1"), absl::UnavailableError("m0 at h:1: gone"));
}

TEST(Status, HttpCodes) {
  EXPECT_EQ(HttpStatus(absl::StatusCode::kOk), 200);
  EXPECT_EQ(HttpStatus(absl::StatusCode::kInvalidArgument), 400);
  EXPECT_EQ(HttpStatus(absl::StatusCode::kResourceExhausted), 429);
  EXPECT_EQ(HttpStatus(absl::StatusCode::kUnavailable), 503);
  EXPECT_EQ(HttpStatus(static_cast<absl::StatusCode>(77)), 500);
}

TEST(Status, AWrongSlotCarriesItsEpochThroughTheWire) {
  absl::Status status = absl::FailedPreconditionError("not here");
  AddWrongSlot("m1", 12, {2, 7}, &status);
  const grpc::Status outside = ToGrpc(status);
  v1::ErrorDetails details;  // what a client in another language sees
  ASSERT_TRUE(details.ParseFromString(outside.error_details()));
  v1::WrongSlot wrong;
  ASSERT_TRUE(details.details(0).UnpackTo(&wrong));
  EXPECT_EQ(wrong.server_id(), "m1");
  EXPECT_EQ(wrong.block().cluster(), 7u);
  EXPECT_EQ(WrongSlotEpoch(FromGrpc(outside)), 12u);
  EXPECT_EQ(WrongSlotEpoch(absl::FailedPreconditionError("another")), std::nullopt);
}

}  // namespace
}  // namespace membank
