#include "model_worker/train/anchor_parameters.h"

#include "common/base/status_macros.h"
#include "model_worker/kernels/ops.h"

namespace membank {
namespace {

constexpr int64_t kBucketElements = int64_t{8} << 20;   // 32 MB of fp32

}  // namespace

AnchorParameters::AnchorParameters(std::vector<std::pair<std::string, torch::Tensor>> parameters, Collectives* collectives)
    : parameters_(std::move(parameters)), collectives_(collectives) {
  MakeBuckets();
}

// Owners are runs of the order: the one in whose share of all elements a parameter's middle falls.
void AnchorParameters::MakeBuckets() {
  torch::NoGradGuard no_grad;
  const int64_t ranks = collectives_ == nullptr ? 1 : collectives_->world_size();
  int64_t total = 0, before = 0;
  for (const auto& [name, value] : parameters_) total += value.numel();
  std::vector<int64_t> elements;   // of each bucket
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const int64_t count = parameters_[i].second.numel();
    const auto owner = static_cast<uint32_t>((before + count / 2) * ranks / total);
    before += count;
    if (buckets_.empty() || buckets_.back().owner != owner || elements.back() + count > kBucketElements) {
      buckets_.push_back({i, i, owner, {}});
      elements.push_back(0);
    }
    buckets_.back().end = i + 1;
    elements.back() += count;
  }
  for (size_t b = 0; b < buckets_.size(); ++b) {
    buckets_[b].gradients = torch::empty({elements[b]}, torch::kFloat);
    int64_t at = 0;
    for (size_t i = buckets_[b].begin; i < buckets_[b].end; ++i) {
      const torch::Tensor& value = parameters_[i].second;
      gradients_.push_back(buckets_[b].gradients.narrow(0, at, value.numel()).view(value.sizes()));
      at += value.numel();
    }
  }
}

bool AnchorParameters::owned(size_t i) const {
  if (collectives_ == nullptr) return true;
  for (const Bucket& bucket : buckets_)
    if (i < bucket.end) return bucket.owner == collectives_->rank();
  return false;
}

void AnchorParameters::Collect() {
  torch::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    torch::Tensor parameter = parameters_[i].second;
    const torch::Tensor gradient = parameter.grad();
    if (!gradient.defined()) {
      if (empty_) gradients_[i].zero_();
    } else if (empty_) {
      gradients_[i].copy_(gradient);
    } else {
      Accumulate(gradients_[i], gradient);
    }
    parameter.mutable_grad() = torch::Tensor();
  }
  empty_ = false;
}

void AnchorParameters::StartSum() {
  if (collectives_ == nullptr) return;
  for (const Bucket& bucket : buckets_) collectives_->StartReduce(bucket.gradients, bucket.owner);
}

absl::StatusOr<double> AnchorParameters::FinishSum(uint64_t step) {
  torch::NoGradGuard no_grad;
  if (collectives_ != nullptr) RETURN_IF_ERROR(collectives_->Wait(fmt::format("adding the anchor's gradients of step {}", step)));
  double sum = 0;
  for (size_t i = 0; i < parameters_.size(); ++i)
    if (owned(i)) sum += gradients_[i].square().sum(torch::kDouble).item<double>();
  if (collectives_ == nullptr) return sum;
  const torch::Tensor all = torch::full({1}, sum, torch::kDouble);
  collectives_->StartAllReduce(all);
  RETURN_IF_ERROR(collectives_->Wait(fmt::format("adding the gradient's norm of step {}", step)));
  return all.item<double>();
}

absl::Status AnchorParameters::Share(uint64_t step) {
  torch::NoGradGuard no_grad;
  empty_ = true;
  if (collectives_ == nullptr) return absl::OkStatus();
  std::vector<torch::Tensor> values;   // of each bucket, flat
  for (const Bucket& bucket : buckets_) {
    std::vector<torch::Tensor> flat;
    for (size_t i = bucket.begin; i < bucket.end; ++i) flat.push_back(parameters_[i].second.detach().reshape({-1}));
    values.push_back(torch::cat(flat));
    collectives_->StartBroadcast(values.back().view(torch::kByte), bucket.owner);   // any type
  }
  RETURN_IF_ERROR(collectives_->Wait(fmt::format("sharing the anchor of step {}", step)));
  for (size_t b = 0; b < buckets_.size(); ++b) {
    if (buckets_[b].owner == collectives_->rank()) continue;
    int64_t at = 0;
    for (size_t i = buckets_[b].begin; i < buckets_[b].end; ++i) {
      const torch::Tensor& value = parameters_[i].second;
      value.detach().copy_(values[b].narrow(0, at, value.numel()).view(value.sizes()));
      at += value.numel();
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<double> AnchorParameters::FromRankZero(double value, const std::string& what) {
  if (collectives_ == nullptr) return value;
  const torch::Tensor one = torch::full({1}, value, torch::kDouble);
  collectives_->StartBroadcast(one, 0);
  RETURN_IF_ERROR(collectives_->Wait(what));
  return one.item<double>();
}

absl::Status AnchorParameters::Meet(const std::string& what) {
  if (collectives_ == nullptr) return absl::OkStatus();
  collectives_->StartAllReduce(torch::zeros({1}));
  return collectives_->Wait(what);
}

}  // namespace membank
