#include "model_worker/train/error_feedback.h"

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>

#include "common/bank/gradient_codec.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"
#include "common/tensors/safetensors.h"

namespace membank {
namespace {

constexpr char kPrefix[] = "error_feedback-", kSuffix[] = ".safetensors";

absl::Span<float> Floats(const torch::Tensor& tensor) { return {tensor.data_ptr<float>(), static_cast<size_t>(tensor.numel())}; }

}  // namespace

torch::Tensor ErrorFeedback::Encode(BlockId id, const torch::Tensor& gradient) {
  torch::Tensor& left = left_[id];
  if (left.defined()) left.add_(gradient);
  else left = gradient.clone();
  const BlockShape shape = ShapeOf(spec_, id.level);
  torch::Tensor encoded = torch::empty({static_cast<int64_t>(GradientBytes(kI8Rows, shape))}, torch::kByte);
  EncodeInt8Rows(shape, Floats(left), {encoded.data_ptr<uint8_t>(), static_cast<size_t>(encoded.numel())});
  return encoded;
}

absl::Status ErrorFeedback::Save(const std::string& directory) const {
  RETURN_IF_ERROR(MakeDirectories(directory));
  std::map<BlockId, torch::Tensor> ordered(left_.begin(), left_.end());
  std::vector<TensorView> views;
  for (const auto& [id, tensor] : ordered)
    views.push_back({ToString(id), DType::kF32, tensor.sizes().vec(), {static_cast<const uint8_t*>(tensor.data_ptr()), tensor.nbytes()}});
  return WriteSafetensors(fmt::format("{}/{}{}{}", directory, kPrefix, rank_, kSuffix), views, {});
}

absl::Status ErrorFeedback::Load(const std::string& directory) {
  left_.clear();
  for (uint32_t saver = rank_;; saver += world_size_) {
    const std::string path = fmt::format("{}/{}{}{}", directory, kPrefix, saver, kSuffix);
    if (!std::filesystem::exists(path)) return absl::OkStatus();
    RETURN_IF_ERROR(LoadFile(path));
  }
}

absl::Status ErrorFeedback::LoadFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  for (const auto& [name, view] : file->tensors()) {
    BlockId id;
    const bool fits = std::sscanf(name.c_str(), "%u/%u", &id.level, &id.cluster) == 2 && spec_.Contains(id) && view.dtype == DType::kF32 &&
                      view.elements() == static_cast<int64_t>(spec_.BlockElements(id.level));
    if (!fits)
      return DataLoss("{}: {} has {} elements of {}, which is no block of bank {}", path, name, view.elements(), DTypeName(view.dtype), spec_.bank_id);
    torch::Tensor loaded = torch::empty({view.elements()}, torch::kFloat);
    std::memcpy(loaded.data_ptr(), view.bytes.data(), view.bytes.size());
    torch::Tensor& left = left_[id];
    if (left.defined()) left.add_(loaded);
    else left = loaded;
  }
  return absl::OkStatus();
}

}  // namespace membank
