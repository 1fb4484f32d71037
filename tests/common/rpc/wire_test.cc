#include "common/rpc/wire.h"

#include "gtest/gtest.h"
#include "tests/testing/typed_spec.h"

namespace membank {
namespace {

using testing_support::kMemoryTypes;
using testing_support::TypedSpec;

BankSpec Spec() {
  BankSpec spec;
  spec.bank_id = "bank";
  spec.fan_out = 16;
  spec.widths = {256, 64, 0};
  spec.layers = 30;
  spec.hidden = 576;
  spec.seed = 0xfedcba9876543210;
  spec.anchor_fingerprint = "aa";
  spec.tree_fingerprint = "bb";
  return spec;
}

TEST(Wire, SpecsKeepTheirHash) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    BankSpec spec = Spec();
    spec.dtype = dtype;
    v1::BankSpec message;
    ToProto(spec, &message);
    const auto back = FromProto(message);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->Hash(), spec.Hash());
  }
  for (const MemoryType type : kMemoryTypes) {
    BankSpec spec = TypedSpec(type);
    spec.memory_layers = {0, 2};
    v1::BankSpec message;
    ToProto(spec, &message);
    const auto back = FromProto(message);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(back->ToJson(), spec.ToJson());
  }
}

TEST(Wire, PayloadTypesComeBackAsThemselves) {
  for (const PayloadType type : {PayloadType::kBank, PayloadType::kI8Rows}) EXPECT_EQ(FromProto(ToProto(type)).value(), type);
  EXPECT_EQ(FromProto(static_cast<v1::PayloadType>(2)).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Wire, BadSpecsAreRefused) {
  v1::BankSpec good;
  ToProto(Spec(), &good);
  auto bad = good;
  bad.set_type(v1::MEMORY_TYPE_UNSPECIFIED);
  EXPECT_EQ(FromProto(bad).status().code(), absl::StatusCode::kInvalidArgument);
  bad = good;
  bad.set_type(static_cast<v1::MemoryType>(99));
  EXPECT_EQ(FromProto(bad).status().code(), absl::StatusCode::kInvalidArgument);
  bad = good;
  bad.set_dtype(v1::DTYPE_UNSPECIFIED);
  EXPECT_EQ(FromProto(bad).status().code(), absl::StatusCode::kInvalidArgument);
  bad = good;
  bad.set_layers(1 << 30);
  EXPECT_EQ(FromProto(bad).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Wire, PathsComeBackAsThemselves) {
  for (const BlockPath& path : {BlockPath{}, BlockPath{MemoryMode::kGeneric}, BlockPath{MemoryMode::kFetched, 3, 4095}}) {
    v1::BlockPath message;
    ToProto(path, &message);
    const auto back = FromProto(message);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, path);
  }
  v1::BlockPath unset, shallow;
  shallow.set_mode(v1::MEMORY_MODE_FETCHED);
  EXPECT_EQ(FromProto(unset).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FromProto(shallow).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace membank
