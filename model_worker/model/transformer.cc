#include "model_worker/model/transformer.h"

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <algorithm>
#include <cmath>

#include "model_worker/kernels/matmul.h"
#include "model_worker/kernels/ops.h"
#include "model_worker/model/architecture.h"
#include "model_worker/model/stack.h"

namespace membank {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// One node of the autograd graph for the whole stack of layers. Its inputs are the anchor's parameters, or none when the anchor is frozen.
// torch::autograd::Function cannot take a list of tensors, so this is the Node itself.
struct StackNode : torch::autograd::Node {
  const Stack* stack = nullptr;
  Tape tape;

  variable_list apply(variable_list&& d_out) override {
    TORCH_CHECK(!tape.layers.empty(), "backward a second time through the same Forward");
    return stack->Backward(tape, d_out[0]);
  }
  std::string name() const override { return "membank::Stack"; }
  void release_variables() override { tape = Tape(); }
};

torch::Tensor ForwardWithGraph(Stack* stack, const RaggedBatch& batch, bool train_anchor) {
  const std::shared_ptr<StackNode> node(new StackNode, torch::autograd::deleteNode);
  node->stack = stack;
  if (train_anchor) node->set_next_edges(torch::autograd::collect_next_edges(stack->Parameters()));
  torch::Tensor hidden;
  {
    torch::NoGradGuard no_grad;
    hidden = stack->Forward(batch, &node->tape);
  }
  torch::autograd::create_gradient_edge(hidden, node);
  return hidden;
}

struct LossGradients {
  torch::Tensor loss, z_share, d_hidden, d_head;
};

// Chunk by chunk: logits, softmax gradient in their place, products back.
LossGradients ChunkedLoss(const torch::Tensor& hidden, const Projection& head, const torch::Tensor& targets, double scale,
                          double z_loss, bool want_hidden, bool want_head) {
  constexpr int64_t kLogits = int64_t{12} << 20;   // elements of logits at a time
  const int64_t rows = hidden.size(0), vocabulary = head.w().size(0);
  const int64_t chunk = std::clamp<int64_t>(kLogits / vocabulary, 16, 1024);
  LossGradients result;
  result.loss = torch::zeros({}, hidden.options().dtype(torch::kDouble));
  result.z_share = torch::zeros_like(result.loss);
  if (want_hidden) result.d_hidden = torch::empty_like(hidden);
  if (want_head) result.d_head = torch::zeros({vocabulary, hidden.size(1)}, hidden.options().dtype(torch::kFloat));
  // One for all chunks: no new pages. Rows a line longer than the vocabulary, which is a multiple of 4 KB as often as not: rows of the
  // product would fall on the same lines of the cache.
  torch::Tensor buffer = torch::empty({std::min(chunk, rows), vocabulary + 32}, hidden.options()).narrow(1, 0, vocabulary);
  for (int64_t first = 0; first < rows; first += chunk) {
    const int64_t n = std::min(chunk, rows - first);
    const torch::Tensor x = hidden.narrow(0, first, n);                              // [n, d]
    torch::Tensor logits = buffer.narrow(0, 0, n);                                   // [n, V]
    head.ForwardOut(logits, x);
    const bool gradient = want_hidden || want_head;
    const TokenLosses tokens = CrossEntropy(logits, targets.narrow(0, first, n), scale, z_loss, gradient);
    result.loss += tokens.losses.sum(torch::kDouble);
    if (z_loss > 0) result.z_share += tokens.log_sums.square().sum(torch::kDouble);
    if (want_hidden) head.InputGradientOut(result.d_hidden.narrow(0, first, n), logits);
    if (want_head) Accumulate(result.d_head, torch::mm(logits.t(), x));
  }
  result.z_share *= z_loss * scale;
  result.loss = (result.loss * scale + result.z_share).to(torch::kFloat);
  if (want_head) result.d_head = result.d_head.to(hidden.scalar_type());
  return result;
}

struct LossFunction : torch::autograd::Function<LossFunction> {
  // `w` is head.w(): autograd must see the tensor.
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& hidden, const torch::Tensor& w, const Projection& head,
                               const torch::Tensor& targets, double scale, double z_loss, double* z_share) {
    LossGradients result = ChunkedLoss(hidden, head, targets, scale, z_loss, hidden.requires_grad(), w.requires_grad());
    if (z_share != nullptr) *z_share = result.z_share.item<double>();
    ctx->saved_data["d_hidden"] = result.d_hidden;
    ctx->saved_data["d_head"] = result.d_head;
    return result.loss;
  }

  static variable_list backward(AutogradContext* ctx, variable_list d_loss) {
    const auto scaled = [&](const char* name) {
      const torch::Tensor gradient = ctx->saved_data[name].toTensor();
      return gradient.defined() ? gradient.mul_(d_loss[0].to(gradient.scalar_type())) : gradient;
    };
    return {scaled("d_hidden"), scaled("d_head"), torch::Tensor(), torch::Tensor(), torch::Tensor(), torch::Tensor(), torch::Tensor()};
  }
};

bool WantsGradient(const RaggedBatch& batch) {
  for (const MemoryLevel& level : batch.memory) {
    for (const MemoryGroup& group : level.groups) {
      if (group.gradient.defined()) return true;
    }
  }
  return false;
}

}  // namespace

torch::Tensor RopeForm::InverseFrequencies(int64_t turned) const {
  const torch::Tensor exponent = torch::arange(0, turned, 2, torch::kLong).to(torch::kFloat) / static_cast<double>(turned);
  const torch::Tensor inverse = 1.0 / torch::pow(torch::full({}, theta, torch::TensorOptions(torch::kFloat)), exponent);
  if (scaling == "linear") return inverse / factor;
  if (scaling != "llama3") return inverse;
  const torch::Tensor turns = static_cast<double>(original_context) * inverse / (2 * M_PI);   // in the original context
  const torch::Tensor fast = ((turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor)).clamp(0, 1);
  return (1 - fast) * inverse / factor + fast * inverse;
}

std::vector<std::pair<std::string, torch::Tensor>> AnchorWeights::Named() const {
  const OuterNames names = OuterNamesOf(config);
  std::vector<std::pair<std::string, torch::Tensor>> named{{names.embedding, embedding}};
  const std::vector<LayerTensor> tensors = LayerTensors(config);
  for (size_t i = 0; i < layers.size(); ++i) {
    const std::string prefix = LayerPrefix(config, static_cast<int64_t>(i));
    for (const LayerTensor& tensor : tensors) {
      const std::string part = tensor.parts > 1 ? "[" + std::to_string(tensor.part) + "]" : "";
      named.emplace_back(prefix + tensor.stored + part, layers[i].*tensor.member);
    }
  }
  named.emplace_back(names.final_norm, final_norm);
  if (config.norm_bias) named.emplace_back(names.final_norm_bias, final_norm_bias);
  if (!config.tied_head) named.emplace_back(names.head, head);
  return named;
}

Transformer::Transformer(AnchorWeights weights, bool train_anchor)
    : weights_(std::make_unique<AnchorWeights>(std::move(weights))),
      train_anchor_(train_anchor),
      dtype_(weights_->embedding.scalar_type()),
      device_(weights_->embedding.device()),
      stack_(std::make_unique<Stack>(*weights_, train_anchor)) {
  if (train_anchor) {
    for (const auto& [name, parameter] : weights_->Named()) torch::Tensor(parameter).set_requires_grad(true);
    if (weights_->config.tied_head) weights_->head = weights_->embedding;
  }
  head_ = std::make_unique<Projection>(weights_->head, !train_anchor);
}

Transformer::~Transformer() = default;
Transformer::Transformer(Transformer&&) noexcept = default;

torch::Tensor Transformer::Forward(const RaggedBatch& batch) {
  if (torch::GradMode::is_enabled() && (train_anchor_ || WantsGradient(batch))) {
    return ForwardWithGraph(stack_.get(), batch, train_anchor_);
  }
  torch::NoGradGuard no_grad;
  return stack_->Forward(batch, nullptr);
}

torch::Tensor Transformer::Logits(const torch::Tensor& hidden) {
  const bool graph = torch::GradMode::is_enabled() && (hidden.requires_grad() || weights_->head.requires_grad());
  return (graph ? torch::linear(hidden, weights_->head) : head_->Forward(hidden.contiguous())).to(torch::kFloat);
}

torch::Tensor Transformer::Loss(const torch::Tensor& hidden, const torch::Tensor& targets, double denominator, double z_loss, double* z_share) {
  if (denominator <= 0) denominator = std::max<double>(1.0, targets.ne(-100).sum().item<double>());
  const torch::Tensor rows = hidden.contiguous(), labels = targets.contiguous();
  if (torch::GradMode::is_enabled() && (hidden.requires_grad() || weights_->head.requires_grad())) {
    return LossFunction::apply(rows, weights_->head, *head_, labels, 1.0 / denominator, z_loss, z_share);
  }
  torch::NoGradGuard no_grad;
  const LossGradients result = ChunkedLoss(rows, *head_, labels, 1.0 / denominator, z_loss, false, false);
  if (z_share != nullptr) *z_share = result.z_share.item<double>();
  return result.loss;
}

KvCache Transformer::NewCache(int64_t capacity) const {
  const ModelConfig& c = weights_->config;
  KvCache cache;
  for (int64_t i = 0; i < c.layers; ++i) {
    cache.keys.push_back(torch::empty({c.kv_heads, capacity, c.head_dim}, torch::TensorOptions(dtype_).device(device_)));
    cache.values.push_back(torch::empty_like(cache.keys.back()));
  }
  return cache;
}

}  // namespace membank
