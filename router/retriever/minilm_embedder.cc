// BERT with mean pooling, as sentence-transformers runs all-MiniLM-L6-v2: learned positions, token type 0, post-layer norm (eps 1e-12),
// GELU (erf), mean over the tokens that are not padding, L2 norm. Texts are sorted by length so that a batch carries little padding.
#include <torch/torch.h>

#include <algorithm>
#include <mutex>
#include <numeric>

#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/tensors/safetensors.h"
#include "common/text/tokenizer.h"
#include "nlohmann/json.hpp"
#include "router/retriever/embedder.h"

namespace membank {
namespace {

using at::Tensor;
using Json = nlohmann::json;

constexpr int64_t kBatchTokens = 2048;      // padded tokens of one batch: activations stay in the caches
constexpr size_t kPrefixBytes = 2048;       // see CutTokens

struct BertConfig {
  int64_t layers = 0, heads = 0, hidden = 0, positions = 0, vocab_size = 0, max_tokens = 0;
  double eps = 0;
};

struct BertLayer {
  Tensor qkv_weight, qkv_bias, attention_weight, attention_bias, attention_norm_weight, attention_norm_bias;
  Tensor up_weight, up_bias, down_weight, down_bias, norm_weight, norm_bias;
};

struct BertWeights {
  Tensor words, positions, norm_weight, norm_bias;  // positions: token type 0 is added in
  std::vector<BertLayer> layers;
};

absl::StatusOr<Json> ReadJson(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseJsonObject(text, path);
}

absl::StatusOr<BertConfig> ReadConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  ASSIGN_OR_RETURN(const Json json, ReadJson(path));
  BertConfig config;
  try {
    const std::string type = json.value("model_type", "(none)");
    if (type != "bert") return Unimplemented("{}: model_type '{}' is not supported as embedder; supported: bert (all-MiniLM-L6-v2)", path, type);
    if (json.value("hidden_act", "") != "gelu") return Unimplemented("{}: hidden_act '{}' is not supported; supported: gelu", path, json.value("hidden_act", ""));
    config.layers = json.at("num_hidden_layers");
    config.heads = json.at("num_attention_heads");
    config.hidden = json.at("hidden_size");
    config.positions = json.at("max_position_embeddings");
    config.vocab_size = json.at("vocab_size");
    config.eps = json.at("layer_norm_eps");
    config.max_tokens = config.positions;
    const std::string sentence = directory + "/sentence_bert_config.json";
    if (absl::StatusOr<Json> limits = ReadJson(sentence); limits.ok()) config.max_tokens = limits->value("max_seq_length", config.max_tokens);
  } catch (const Json::exception& error) {
    return InvalidArgument("{}: {}", path, error.what());
  }
  if (config.heads < 1 || config.hidden < 1 || config.hidden % config.heads != 0 || config.max_tokens < 3 || config.max_tokens > config.positions) {
    return InvalidArgument("{}: {} heads, hidden size {}, {} of {} positions do not make a BERT", path, config.heads, config.hidden, config.max_tokens,
                           config.positions);
  }
  return config;
}

class Loader {
 public:
  Loader(const SafetensorsFile& file, const std::string& path) : file_(file), path_(path) {}

  absl::StatusOr<Tensor> Get(const std::string& name, const std::vector<int64_t>& shape) const {
    ASSIGN_OR_RETURN(const TensorView view, file_.Find(name));
    if (view.shape != shape) {
      return InvalidArgument("{}: {} has shape [{}]; config.json asks for [{}]", path_, name, fmt::join(view.shape, ", "), fmt::join(shape, ", "));
    }
    ASSIGN_OR_RETURN(std::vector<float> values, ToFloats(view));
    return at::from_blob(values.data(), shape, at::kFloat).clone();
  }

 private:
  const SafetensorsFile& file_;
  const std::string& path_;
};

absl::StatusOr<BertLayer> LoadLayer(const Loader& loader, const std::string& prefix, int64_t hidden, int64_t inner) {
  BertLayer layer;
  std::vector<Tensor> weights, biases;
  for (const char* part : {"query", "key", "value"}) {
    ASSIGN_OR_RETURN(Tensor weight, loader.Get(fmt::format("{}attention.self.{}.weight", prefix, part), {hidden, hidden}));
    ASSIGN_OR_RETURN(Tensor bias, loader.Get(fmt::format("{}attention.self.{}.bias", prefix, part), {hidden}));
    weights.push_back(weight);
    biases.push_back(bias);
  }
  layer.qkv_weight = at::cat(weights);
  layer.qkv_bias = at::cat(biases);
  ASSIGN_OR_RETURN(layer.attention_weight, loader.Get(prefix + "attention.output.dense.weight", {hidden, hidden}));
  ASSIGN_OR_RETURN(layer.attention_bias, loader.Get(prefix + "attention.output.dense.bias", {hidden}));
  ASSIGN_OR_RETURN(layer.attention_norm_weight, loader.Get(prefix + "attention.output.LayerNorm.weight", {hidden}));
  ASSIGN_OR_RETURN(layer.attention_norm_bias, loader.Get(prefix + "attention.output.LayerNorm.bias", {hidden}));
  ASSIGN_OR_RETURN(layer.up_weight, loader.Get(prefix + "intermediate.dense.weight", {inner, hidden}));
  ASSIGN_OR_RETURN(layer.up_bias, loader.Get(prefix + "intermediate.dense.bias", {inner}));
  ASSIGN_OR_RETURN(layer.down_weight, loader.Get(prefix + "output.dense.weight", {hidden, inner}));
  ASSIGN_OR_RETURN(layer.down_bias, loader.Get(prefix + "output.dense.bias", {hidden}));
  ASSIGN_OR_RETURN(layer.norm_weight, loader.Get(prefix + "output.LayerNorm.weight", {hidden}));
  ASSIGN_OR_RETURN(layer.norm_bias, loader.Get(prefix + "output.LayerNorm.bias", {hidden}));
  return layer;
}

absl::StatusOr<BertWeights> LoadWeights(const SafetensorsFile& file, const std::string& path, const BertConfig& config) {
  const Loader loader(file, path);
  BertWeights weights;
  ASSIGN_OR_RETURN(weights.words, loader.Get("embeddings.word_embeddings.weight", {config.vocab_size, config.hidden}));
  ASSIGN_OR_RETURN(const Tensor positions, loader.Get("embeddings.position_embeddings.weight", {config.positions, config.hidden}));
  ASSIGN_OR_RETURN(const TensorView types, file.Find("embeddings.token_type_embeddings.weight"));
  ASSIGN_OR_RETURN(const Tensor type, loader.Get(types.name, {types.shape.empty() ? 0 : types.shape[0], config.hidden}));
  weights.positions = positions + type[0];
  ASSIGN_OR_RETURN(weights.norm_weight, loader.Get("embeddings.LayerNorm.weight", {config.hidden}));
  ASSIGN_OR_RETURN(weights.norm_bias, loader.Get("embeddings.LayerNorm.bias", {config.hidden}));
  ASSIGN_OR_RETURN(const TensorView up, file.Find("encoder.layer.0.intermediate.dense.weight"));
  const int64_t inner = up.shape.empty() ? 0 : up.shape[0];
  for (int64_t i = 0; i < config.layers; ++i) {
    ASSIGN_OR_RETURN(BertLayer layer, LoadLayer(loader, fmt::format("encoder.layer.{}.", i), config.hidden, inner));
    weights.layers.push_back(std::move(layer));
  }
  return weights;
}

class MiniLmEmbedder : public Embedder {
 public:
  MiniLmEmbedder(BertConfig config, BertWeights weights, std::unique_ptr<Tokenizer> tokenizer, int32_t cls, int32_t sep, std::string fingerprint)
      : config_(config), weights_(std::move(weights)), tokenizer_(std::move(tokenizer)), cls_(cls), sep_(sep), fingerprint_(std::move(fingerprint)) {}

  uint32_t dimension() const override { return static_cast<uint32_t>(config_.hidden); }
  std::string Fingerprint() const override { return fingerprint_; }

  absl::StatusOr<std::vector<std::vector<float>>> Embed(const std::vector<std::string>& texts) override {
    const std::lock_guard<std::mutex> lock(mu_);
    const c10::InferenceMode inference;
    ASSIGN_OR_RETURN(const std::vector<std::vector<int32_t>> tokens, TokenizeAll(texts));
    std::vector<size_t> order(texts.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return tokens[a].size() > tokens[b].size(); });
    std::vector<std::vector<float>> embeddings(texts.size());
    for (size_t first = 0; first < order.size();) {
      const auto longest = static_cast<int64_t>(tokens[order[first]].size());
      const size_t count = std::min(order.size() - first, static_cast<size_t>(std::max<int64_t>(1, kBatchTokens / longest)));
      EmbedBatch(tokens, absl::MakeConstSpan(order).subspan(first, count), longest, embeddings);
      first += count;
    }
    return embeddings;
  }

 private:
  absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizeAll(const std::vector<std::string>& texts) const {
    std::vector<std::vector<int32_t>> tokens(texts.size());
    std::vector<absl::Status> failures(texts.size());
    at::parallel_for(0, static_cast<int64_t>(texts.size()), 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        absl::StatusOr<std::vector<int32_t>> cut = CutTokens(texts[i]);
        if (cut.ok()) tokens[i] = *std::move(cut);
        else failures[i] = cut.status();
      }
    });
    for (size_t i = 0; i < texts.size(); ++i) {
      if (!failures[i].ok()) return Annotate(failures[i], fmt::format("text {} of {}", i + 1, texts.size()));
    }
    return tokens;
  }

  // [CLS] tokens [SEP], at most max_tokens. WordPiece goes word by word, so a prefix that ends at white space has the first tokens of
  // the whole text: most of a long text is never looked at. "[SEP]" in a text is the special token, as for sentence-transformers.
  absl::StatusOr<std::vector<int32_t>> CutTokens(std::string_view text) const {
    const auto room = static_cast<size_t>(config_.max_tokens - 2);
    std::vector<int32_t> ids;
    const size_t space = text.size() > kPrefixBytes ? text.find(' ', kPrefixBytes) : std::string_view::npos;
    if (space != std::string_view::npos) {
      ASSIGN_OR_RETURN(ids, tokenizer_->Encode(text.substr(0, space), /*parse_special=*/true));
    }
    if (ids.size() < room) {
      ASSIGN_OR_RETURN(ids, tokenizer_->Encode(text, /*parse_special=*/true));
    }
    if (ids.size() > room) ids.resize(room);
    ids.insert(ids.begin(), cls_);
    ids.push_back(sep_);
    return ids;
  }

  void EmbedBatch(const std::vector<std::vector<int32_t>>& tokens, absl::Span<const size_t> batch, int64_t length,
                  std::vector<std::vector<float>>& embeddings) const {
    const auto rows = static_cast<int64_t>(batch.size());
    Tensor ids = at::zeros({rows, length}, at::kLong);    // 0 is [PAD]
    Tensor mask = at::zeros({rows, length}, at::kFloat);  // 1 where there is a token
    bool padded = false;
    for (int64_t i = 0; i < rows; ++i) {
      const std::vector<int32_t>& row = tokens[batch[i]];
      std::copy(row.begin(), row.end(), ids.data_ptr<int64_t>() + i * length);
      std::fill_n(mask.data_ptr<float>() + i * length, row.size(), 1.0f);
      padded |= static_cast<int64_t>(row.size()) < length;
    }
    const Tensor hidden = Forward(ids, padded ? mask : Tensor());                            // [rows, length, c]
    const Tensor weight = mask.unsqueeze(1) / mask.sum(1).view({rows, 1, 1});                // [rows, 1, length]
    Tensor mean = at::matmul(weight, hidden).squeeze(1);                                     // [rows, c]
    mean = (mean / mean.norm(2, 1, /*keepdim=*/true).clamp_min(1e-12)).contiguous();
    for (int64_t i = 0; i < rows; ++i) {
      const float* row = mean.data_ptr<float>() + i * config_.hidden;
      embeddings[batch[i]].assign(row, row + config_.hidden);
    }
  }

  // ids [b, t]; mask [b, t] with 1 for tokens and 0 for padding, undefined when there is no padding. -> [b, t, c]
  Tensor Forward(const Tensor& ids, const Tensor& mask) const {
    const int64_t b = ids.size(0), t = ids.size(1), c = config_.hidden, h = config_.heads;
    std::optional<Tensor> bias;
    if (mask.defined()) bias = ((mask - 1) * 1e30f).view({b, 1, 1, t}).expand({b, 1, t, t});
    Tensor x = at::embedding(weights_.words, ids) + weights_.positions.slice(0, 0, t);
    x = at::layer_norm(x, {c}, weights_.norm_weight, weights_.norm_bias, config_.eps).view({b * t, c});
    for (const BertLayer& layer : weights_.layers) {
      const auto qkv = at::linear(x, layer.qkv_weight, layer.qkv_bias).view({b, t, 3, h, c / h}).permute({2, 0, 3, 1, 4});
      Tensor y = at::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], bias);          // [b, h, t, c / h]
      y = at::linear(y.transpose(1, 2).reshape({b * t, c}), layer.attention_weight, layer.attention_bias);
      x = at::layer_norm(y.add_(x), {c}, layer.attention_norm_weight, layer.attention_norm_bias, config_.eps);
      y = at::linear(x, layer.up_weight, layer.up_bias);
      y = at::linear(at::gelu_(y), layer.down_weight, layer.down_bias);
      x = at::layer_norm(y.add_(x), {c}, layer.norm_weight, layer.norm_bias, config_.eps);
    }
    return x.view({b, t, c});
  }

  const BertConfig config_;
  const BertWeights weights_;
  const std::unique_ptr<Tokenizer> tokenizer_;
  const int32_t cls_, sep_;
  const std::string fingerprint_;
  std::mutex mu_;  // one forward pass at a time: each uses all cores
};

}  // namespace

absl::StatusOr<std::unique_ptr<Embedder>> LoadMiniLm(const std::string& directory) {
  ASSIGN_OR_RETURN(const BertConfig config, ReadConfig(directory));
  const std::string path = directory + "/model.safetensors";
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  ASSIGN_OR_RETURN(BertWeights weights, LoadWeights(*file, path, config));
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(directory));
  if (tokenizer->vocab_size() > config.vocab_size) {
    return FailedPrecondition("{}: the tokenizer has {} tokens but the model {} embeddings; they do not belong together", directory,
                              tokenizer->vocab_size(), config.vocab_size);
  }
  ASSIGN_OR_RETURN(const int32_t cls, tokenizer->TokenId("[CLS]"));
  ASSIGN_OR_RETURN(const int32_t sep, tokenizer->TokenId("[SEP]"));
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> bytes, MappedFile::Open(path));
  std::string fingerprint = Hash128Hex({reinterpret_cast<const char*>(bytes->bytes().data()), bytes->bytes().size()});
  return std::make_unique<MiniLmEmbedder>(config, std::move(weights), std::move(tokenizer), cls, sep, std::move(fingerprint));
}

}  // namespace membank
