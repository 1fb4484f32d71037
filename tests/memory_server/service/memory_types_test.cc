// Every memory type through a server: initial values, gradients as int8 rows, the row-wise optimizer, checkpoint and versions. What a block
// holds is nothing to the server but rows, and these are the rows whose matrices differ in width.
#include "common/bank/block_init.h"
#include "common/bank/block_layout.h"
#include "common/bank/gradient_codec.h"
#include "gmock/gmock.h"
#include "tests/testing/memory_cluster.h"
#include "tests/testing/status_check.h"
#include "tests/testing/typed_spec.h"

namespace membank {
namespace {

constexpr BlockId kId{2, 4};
constexpr auto kPatience = std::chrono::seconds(10);

class MemoryTypes : public ::testing::TestWithParam<MemoryType> {
 protected:
  std::vector<float> Fetch(MemoryClient& client, const std::string& version) {
    std::vector<float> values(spec_.BlockElements(2));
    BlockFetch fetch;
    fetch.id = kId;
    fetch.destination = {reinterpret_cast<uint8_t*>(values.data()), values.size() * sizeof(float)};
    FetchOptions options;
    options.bank_version = version;
    options.int8 = !version.empty();
    EXPECT_OK(client.Fetch(absl::MakeSpan(&fetch, 1), options));
    if (fetch.payload == PayloadType::kBank) return values;
    std::vector<float> read(values.size());
    DequantisePayload(spec_, 2, fetch.destination.subspan(0, PayloadBytes(spec_, 2, fetch.payload)), absl::MakeSpan(read));
    return read;
  }

  const BankSpec spec_ = testing_support::TypedSpec(GetParam());
};

TEST_P(MemoryTypes, ServeTrainAndPublish) {
  testing_support::MemoryCluster cluster(spec_, 2);
  const std::unique_ptr<MemoryClient> client = cluster.Connect();
  EXPECT_EQ(client->spec().Hash(), spec_.Hash());
  std::vector<float> initial(spec_.BlockElements(2));
  InitBlock(spec_, kId, absl::MakeSpan(initial));
  EXPECT_EQ(Fetch(*client, ""), initial);

  RunSettings run;
  run.run_id = "run";
  run.optimizer = OptimizerKind::kRowWiseAdamW;
  ASSERT_OK(client->BeginRun(run));
  const BlockShape shape = ShapeOf(spec_, 2);
  std::vector<float> gradient(shape.elements());
  for (uint64_t i = 0; i < gradient.size(); ++i) gradient[i] = i / shape.row % 3 == 0 ? 0.25f : -8.0f;   // every row its own size
  const std::vector<float> pushed = gradient;
  std::vector<uint8_t> bytes(GradientBytes(kI8Rows, shape));
  EncodeInt8Rows(shape, absl::MakeSpan(gradient), absl::MakeSpan(bytes));
  const BlockGradient push{kId, kI8Rows, bytes};
  ASSERT_OK(client->Push({"run", 1, 1}, 0, {&push, 1}));
  ASSERT_OK(client->PrepareStep({"run", 1, 1}, kPatience).status());
  ASSERT_OK(client->ApplyStep({"run", 1, 1}, {1.0f, 0.5f, 0.0f}));

  const std::vector<float> trained = Fetch(*client, "");   // Adam's first step: the rate, against the gradient's sign
  for (uint64_t i = 0; i < trained.size(); ++i) ASSERT_NEAR(trained[i], initial[i] - std::copysign(0.5f, pushed[i]), 1e-5) << i;

  ASSERT_OK(client->PrepareCheckpoint("cut", 1));
  ASSERT_OK(client->CommitCheckpoint("cut"));
  ASSERT_OK(client->Publish("cut", "v1", PayloadType::kI8Rows));
  const std::vector<float> published = Fetch(*client, "v1");
  for (uint64_t i = 0; i < trained.size(); ++i) ASSERT_NEAR(published[i], trained[i], 2.5 / 254) << i;
}

INSTANTIATE_TEST_SUITE_P(All, MemoryTypes, ::testing::ValuesIn(testing_support::kMemoryTypes),
                         [](const auto& type) { return std::string(MemoryTypeName(type.param)); });

}  // namespace
}  // namespace membank
