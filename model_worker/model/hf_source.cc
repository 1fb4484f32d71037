// A Hugging Face directory: config.json and one model.safetensors, or the shards that model.safetensors.index.json names.
#include <filesystem>
#include <map>

#include "common/base/file.h"
#include "common/base/json.h"
#include "common/base/status_macros.h"
#include "common/tensors/safetensors.h"
#include "model_worker/model/anchor_source.h"
#include "model_worker/model/hf_config.h"
#include "nlohmann/json.hpp"
#include "xxhash.h"

namespace membank {
namespace {

absl::StatusOr<torch::Dtype> TorchType(const TensorView& view, const std::string& file) {
  switch (view.dtype) {
    case DType::kF32: return torch::kFloat;
    case DType::kBF16: return torch::kBFloat16;
    case DType::kF16: return torch::kHalf;
    default: return Unimplemented("{}: tensor {} has type {}; supported: F32, BF16, F16", file, view.name, DTypeName(view.dtype));
  }
}

class HuggingFaceSource : public AnchorSource {
 public:
  explicit HuggingFaceSource(ModelConfig config) : config_(std::move(config)) {}

  absl::Status AddFile(const std::string& path) {
    ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
    for (const auto& [name, view] : file->tensors()) {
      if (!tensors_.emplace(name, Located{view, path}).second) {
        return InvalidArgument("tensor {} is in {} and in {}", name, tensors_.at(name).file, path);
      }
    }
    if (const auto origin = file->metadata().find(kOriginKey); origin != file->metadata().end()) origin_ = origin->second;
    files_.push_back(std::move(file));
    return absl::OkStatus();
  }

  std::string Origin() const override { return origin_; }
  const ModelConfig& config() const override { return config_; }
  bool Has(const std::string& name) const override { return tensors_.count(name) > 0; }

  absl::StatusOr<torch::Tensor> Read(const std::string& name, const std::vector<int64_t>& shape, torch::Dtype dtype) const override {
    const auto it = tensors_.find(name);
    if (it == tensors_.end()) return NotFound("{}: tensor {} {} is missing", Where(), name, ShapeText(shape));
    const auto& [view, file] = it->second;
    if (view.shape != shape) {
      return InvalidArgument("{}: tensor {} has shape {}, the configuration asks for {}", file, name, ShapeText(view.shape), ShapeText(shape));
    }
    ASSIGN_OR_RETURN(const torch::Dtype type, TorchType(view, file));
    // The bytes need not be aligned for their type: copy them into a tensor of our own first.
    torch::Tensor tensor = torch::empty(shape, type);
    std::memcpy(tensor.data_ptr(), view.bytes.data(), view.bytes.size());
    return tensor.to(dtype);
  }

  std::string Fingerprint() const override {
    XXH3_state_t* state = XXH3_createState();
    XXH3_128bits_reset(state);
    const std::string config = CanonicalConfig(config_);
    XXH3_128bits_update(state, config.data(), config.size());
    for (const auto& [name, located] : tensors_) {   // sorted by name: independent of the sharding
      const std::string header = fmt::format("\n{} {} {}\n", name, DTypeName(located.view.dtype), ShapeText(located.view.shape));
      XXH3_128bits_update(state, header.data(), header.size());
      XXH3_128bits_update(state, located.view.bytes.data(), located.view.bytes.size());
    }
    const XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  struct Located {
    TensorView view;
    std::string file;
  };
  std::string Where() const { return tensors_.empty() ? "anchor" : std::filesystem::path(tensors_.begin()->second.file).parent_path().string(); }

  ModelConfig config_;
  std::map<std::string, Located> tensors_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::string origin_;
};

absl::StatusOr<std::vector<std::string>> WeightFiles(const std::filesystem::path& directory) {
  const std::filesystem::path single = directory / "model.safetensors", index = directory / "model.safetensors.index.json";
  if (std::filesystem::exists(single)) return std::vector<std::string>{single.string()};
  if (!std::filesystem::exists(index)) {
    return NotFound("{} has neither model.safetensors nor model.safetensors.index.json", directory.string());
  }
  ASSIGN_OR_RETURN(const std::string text, ReadFile(index.string()));
  ASSIGN_OR_RETURN(const nlohmann::json json, ParseJsonObject(text, index.string()));
  if (!json.contains("weight_map") || !json["weight_map"].is_object()) {
    return InvalidArgument("{} has no \"weight_map\" object", index.string());
  }
  std::map<std::string, bool> names;
  for (const auto& [tensor, file] : json["weight_map"].items()) {
    if (!file.is_string() || file.get<std::string>().find('/') != std::string::npos) {
      return InvalidArgument("{}: tensor {} must name a file beside the index and names {}", index.string(), tensor, file.dump());
    }
    names[file.get<std::string>()] = true;
  }
  std::vector<std::string> files;
  for (const auto& [name, used] : names) files.push_back((directory / name).string());
  return files;
}

}  // namespace

absl::StatusOr<std::unique_ptr<AnchorSource>> OpenHuggingFace(const std::string& directory) {
  const std::string config_path = (std::filesystem::path(directory) / "config.json").string();
  ASSIGN_OR_RETURN(const std::string text, ReadFile(config_path));
  ASSIGN_OR_RETURN(ModelConfig config, ParseHuggingFaceConfig(text, config_path));
  auto source = std::make_unique<HuggingFaceSource>(std::move(config));
  ASSIGN_OR_RETURN(const std::vector<std::string> files, WeightFiles(directory));
  for (const std::string& file : files) RETURN_IF_ERROR(source->AddFile(file));
  return source;
}

}  // namespace membank
