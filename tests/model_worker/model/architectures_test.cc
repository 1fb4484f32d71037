// Every architecture's tiny model (tests/golden/model/make_architectures.py) against transformers, and against itself: packed, cached, saved.
#include <cstdlib>
#include <filesystem>

#include "common/base/file.h"
#include "gmock/gmock.h"
#include "model_worker/model/bake.h"
#include "model_worker/model/hf_config.h"
#include "model_worker/model/weights.h"
#include "nlohmann/json.hpp"
#include "tests/model_worker/model/golden.h"

namespace membank {
namespace {

constexpr int64_t kWidth = 5, kEnds[] = {29, 33, 48};

class ArchitecturesTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    torch::set_num_threads(2);
    golden_ = ReadGolden(Folder() + "/golden.safetensors");
    ASSERT_FALSE(golden_.empty());
  }
  static std::string Folder() { return std::string("architectures/") + GetParam(); }

  Transformer Load(torch::Dtype dtype, bool train_anchor) {
    auto weights = LoadAnchor(GoldenPath(Folder()), dtype);
    EXPECT_TRUE(weights.ok()) << weights.status().ToString();
    return Transformer(*std::move(weights), train_anchor);
  }
  RaggedBatch Batch(torch::Dtype dtype, bool memory, bool gradient = false) {
    RaggedBatch batch;
    batch.tokens = golden_["tokens"];
    batch.segments = {{0, kEnds[0]}, {kEnds[0], kEnds[1]}, {kEnds[1], kEnds[2]}};
    if (!memory) return batch;
    MemoryGroup group{golden_["block"].to(dtype), {}, {{0, kEnds[2]}}};
    if (gradient) group.gradient = torch::zeros({group.block.numel()}, torch::kFloat);
    batch.memory = {{kWidth, {std::move(group)}}};
    return batch;
  }

  std::map<std::string, torch::Tensor> golden_;
};

TEST_P(ArchitecturesTest, LogitsAndLossEqualTransformers) {
  Transformer model = Load(torch::kFloat, false);
  torch::NoGradGuard no_grad;
  const torch::Tensor plain = model.Forward(Batch(torch::kFloat, false));
  EXPECT_LE(MaxAbs(model.Logits(plain), golden_["plain_logits"]), 1e-5);
  EXPECT_NEAR(model.Loss(plain, golden_["targets"]).item<double>(), golden_["plain_loss"].item<double>(), 2e-6);
  const torch::Tensor hidden = model.Forward(Batch(torch::kFloat, true));
  EXPECT_LE(MaxAbs(model.Logits(hidden), golden_["logits"]), 1e-5);
  EXPECT_NEAR(model.Loss(hidden, golden_["targets"]).item<double>(), golden_["loss"].item<double>(), 2e-6);
}

TEST_P(ArchitecturesTest, GradientsEqualAutograd) {
  for (const bool train_anchor : {true, false}) {
    Transformer model = Load(torch::kFloat, train_anchor);
    const RaggedBatch batch = Batch(torch::kFloat, true, true);
    model.Loss(model.Forward(batch), golden_["targets"]).backward();
    EXPECT_LE(MaxAbs(batch.memory[0].groups[0].gradient, golden_["gradient.block"]), 2e-6);
    size_t parameters = 0;
    for (const auto& [name, parameter] : model.weights().Named()) {
      ++parameters;
      ASSERT_EQ(parameter.grad().defined(), train_anchor) << name;
      ASSERT_TRUE(golden_.count("gradient." + name)) << name;
      if (!train_anchor) continue;
      EXPECT_LE(MaxAbs(parameter.grad(), golden_["gradient." + name]), 2e-6) << name;
    }
    size_t expected = 0;
    for (const auto& [name, tensor] : golden_) expected += name.rfind("gradient.", 0) == 0 && name != "gradient.block";
    EXPECT_EQ(parameters, expected);
  }
}

TEST_P(ArchitecturesTest, TenAdamWSteps) {
  Transformer model = Load(torch::kFloat, true);
  std::vector<torch::Tensor> parameters;
  for (const auto& [name, parameter] : model.weights().Named()) parameters.push_back(parameter);
  torch::optim::AdamW optimizer(parameters, torch::optim::AdamWOptions(1e-3).betas({0.9, 0.95}).weight_decay(0.1));
  const RaggedBatch batch = Batch(torch::kFloat, true);
  for (int64_t step = 0; step < 10; ++step) {
    optimizer.zero_grad();
    const torch::Tensor loss = model.Loss(model.Forward(batch), golden_["targets"]);
    EXPECT_NEAR(loss.item<double>(), golden_["adamw_losses"][step].item<double>(), 1e-5) << "step " << step;
    loss.backward();
    optimizer.step();
  }
}

TEST_P(ArchitecturesTest, Bf16ErrorIsNoLargerThanTransformers) {
  Transformer model = Load(torch::kBFloat16, false);
  torch::NoGradGuard no_grad;
  const torch::Tensor logits = model.Logits(model.Forward(Batch(torch::kBFloat16, true)));
  EXPECT_LE(Rms(logits, golden_["logits"]), 1.5 * golden_["bf16_error"].item<double>());
}

// A prefill and one token after the other, three sequences at once: windows and positions of the cached keys.
TEST_P(ArchitecturesTest, CachedEqualsWhole) {
  Transformer model = Load(torch::kFloat, false);
  torch::NoGradGuard no_grad;
  const torch::Tensor whole = model.Logits(model.Forward(Batch(torch::kFloat, true)));
  int64_t begin = 0;
  for (const int64_t end : kEnds) {
    KvCache cache = model.NewCache(end - begin);
    const int64_t prefill = (end - begin) / 2;
    for (int64_t at = begin; at < end;) {
      const int64_t next = at == begin ? begin + prefill : at + 1;
      RaggedBatch batch;
      batch.tokens = golden_["tokens"].narrow(0, at, next - at);
      batch.segments = {{0, next - at, &cache}};
      batch.memory = {{kWidth, {{golden_["block"], {}, {{0, next - at}}}}}};
      EXPECT_LE(MaxAbs(model.Logits(model.Forward(batch)), whole.narrow(0, at, next - at)), 1e-5) << "token " << at;
      at = next;
    }
    begin = end;
  }
}

TEST_P(ArchitecturesTest, SaveAndLoadKeepEveryBit) {
  const auto weights = LoadAnchor(GoldenPath(Folder()), torch::kFloat);
  ASSERT_TRUE(weights.ok()) << weights.status().ToString();
  const std::string copy = testing::TempDir() + "/architecture_" + GetParam() + "_" + std::to_string(::getpid());
  ASSERT_TRUE(SaveAnchor(*weights, copy).ok());
  const auto again = LoadAnchor(copy, torch::kFloat);
  ASSERT_TRUE(again.ok()) << again.status().ToString();
  EXPECT_EQ(again->fingerprint, weights->fingerprint);   // of the configuration and of every stored tensor
  std::filesystem::remove_all(copy);
}

// The block as part of a wider FFN; golden logits are the hooked transformers model's.
TEST_P(ArchitecturesTest, BakedEqualsFetched) {
  const absl::StatusOr<AnchorWeights> baked = Bake(*LoadAnchor(GoldenPath(Folder()), torch::kFloat), {{kWidth, golden_["block"]}});
  if (std::string(GetParam()).rfind("gpt_neox", 0) == 0) {   // its FFN has no gate
    EXPECT_EQ(baked.status().code(), absl::StatusCode::kUnimplemented);
    return;
  }
  ASSERT_TRUE(baked.ok()) << baked.status().ToString();
  const char* const kept = std::getenv("MEMBANK_BAKED_DIR");   // for tests/golden/model/check_baked.py
  const std::string folder = kept != nullptr ? std::string(kept) + "/" + GetParam() : testing::TempDir() + "/baked_" + GetParam() + "_" + std::to_string(::getpid());
  ASSERT_TRUE(SaveAnchor(*baked, folder).ok());
  auto loaded = LoadAnchor(folder, torch::kFloat);
  ASSERT_TRUE(loaded.ok()) << loaded.status().ToString();
  EXPECT_EQ(loaded->config.ffn_inner, 40 + kWidth);
  EXPECT_EQ(loaded->origin, loaded->fingerprint);
  Transformer model(*std::move(loaded), false);
  torch::NoGradGuard no_grad;
  EXPECT_LE(MaxAbs(model.Logits(model.Forward(Batch(torch::kFloat, false))), golden_["logits"]), 1e-5);
  if (kept == nullptr) std::filesystem::remove_all(folder);
}

// The same tiny models as GGUF files (make_gguf.py): every tensor as in the folder.
class GgufTest : public testing::TestWithParam<const char*> {};

TEST_P(GgufTest, TensorsEqualTheFolders) {
  const std::string name = GetParam();
  const auto folder = LoadAnchor(GoldenPath("architectures/" + name), torch::kFloat), file = LoadAnchor(GoldenPath("gguf/" + name + ".gguf"), torch::kFloat);
  ASSERT_TRUE(folder.ok()) << folder.status().ToString();
  ASSERT_TRUE(file.ok()) << file.status().ToString();
  const auto expected = folder->Named(), found = file->Named();
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].first, expected[i].first);
    EXPECT_LE(MaxAbs(found[i].second, expected[i].second), 2e-7) << found[i].first;   // gemma3's norms went through w + 1 - 1
  }
  if (name == "llama3") {
    EXPECT_EQ(file->config.rope, (RopeForm{10000, "llama3", 8, 1, 4, 8192}));
  }
  if (name == "llama3" || name == "gemma3") return;   // the file's form has fixed numbers for RoPE scaling, window pattern and scale: real models test those
  std::map<std::string, torch::Tensor> golden = ReadGolden("architectures/" + name + "/golden.safetensors");
  Transformer model(*file, false);
  RaggedBatch batch;
  batch.tokens = golden["tokens"];
  batch.segments = {{0, kEnds[0]}, {kEnds[0], kEnds[1]}, {kEnds[1], kEnds[2]}};
  torch::NoGradGuard no_grad;
  EXPECT_LE(MaxAbs(model.Logits(model.Forward(batch)), golden["plain_logits"]), 1e-5);
}

INSTANTIATE_TEST_SUITE_P(All, GgufTest, testing::Values("llama3", "qwen2", "qwen3", "gemma3", "gpt_neox"),
                         [](const auto& info) { return std::string(info.param); });

// config.json of a folder with a field replaced or added.
absl::Status ParseEdited(const std::string& folder, const std::string& field, const nlohmann::json& value) {
  const std::string path = GoldenPath("architectures/" + folder) + "/config.json";
  nlohmann::json json = nlohmann::json::parse(*ReadFile(path));
  json[field] = value;
  return ParseHuggingFaceConfig(json.dump(), path).status();
}

TEST(ConfigTest, WhatIsNotSupportedIsNamed) {
  using testing::HasSubstr;
  const auto refused = [](const std::string& folder, const std::string& field, const nlohmann::json& value, absl::StatusCode code, const std::string& says) {
    const absl::Status status = ParseEdited(folder, field, value);
    EXPECT_EQ(status.code(), code) << folder << " " << field << ": " << status.ToString();
    EXPECT_THAT(std::string(status.message()), testing::AllOf(HasSubstr("config.json"), HasSubstr(says))) << folder << " " << field;
  };
  const auto unimplemented = absl::StatusCode::kUnimplemented, invalid = absl::StatusCode::kInvalidArgument;
  refused("llama3", "hidden_act", "relu", unimplemented, "\"silu\"");
  refused("llama3", "rope_parameters", {{"rope_type", "yarn"}, {"factor", 4}}, unimplemented, "\"llama3\"");
  refused("llama3", "rope_parameters", {{"rope_type", "llama3"}, {"factor", 0}, {"original_max_position_embeddings", 16}}, invalid, "factor");
  refused("llama3", "rope_parameters", {{"rope_type", "llama3"}, {"factor", 8}}, invalid, "original_max_position_embeddings");
  refused("llama3", "num_key_value_heads", 3, invalid, "3 key-value heads");
  refused("llama3", "num_hidden_layers", "two", invalid, "num_hidden_layers");
  refused("qwen2", "layer_types", {"full_attention"}, invalid, "layer_types");
  refused("qwen3", "layer_types", {"full_attention", "linear_attention"}, unimplemented, "linear_attention");
  refused("gemma3", "sliding_window", nullptr, invalid, "sliding_window");
  refused("gemma3", "attn_logit_softcapping", 50.0, unimplemented, "attn_logit_softcapping");
  refused("gemma3", "query_pre_attn_scalar", 0, invalid, "attention scale");
  refused("gpt_neox", "hidden_act", "silu", unimplemented, "gelu");
  refused("gpt_neox", "rope_parameters", {{"partial_rotary_factor", 1.5}}, invalid, "RoPE turns 9 of");
  refused("openlm", "model_norm", "default_layer_norm", unimplemented, "gain_only_layer_norm");
  refused("openlm", "post_embed_norm", true, unimplemented, "post_embed_norm");
  refused("openlm", "dim", nullptr, invalid, "dim");
  EXPECT_TRUE(ParseEdited("openlm", "params_args_dict", nullptr).ok());
}

TEST(BakeTest, BlockOfAnotherSizeIsRefused) {
  const absl::Status status = Bake(*LoadAnchor(GoldenPath("tiny"), torch::kFloat), {{6, torch::zeros({3 * 3 * 6 * 32 - 1})}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("1727"), std::string_view::npos) << status.ToString();
}

INSTANTIATE_TEST_SUITE_P(All, ArchitecturesTest,
                         testing::Values("llama3", "llama_linear", "qwen2", "qwen3", "gemma3", "gpt_neox", "gpt_neox_sequential", "openlm"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace membank
