#include "common/tensors/safetensors.h"

#include <algorithm>
#include <set>

#include "common/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace membank {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr int kMaxDepth = 3;   // header -> tensor -> shape
constexpr char kMetadataKey[] = "__metadata__";

// Parses the header; refuses duplicate keys (nlohmann keeps the last one silently) and deep nesting.
absl::StatusOr<Json> ParseHeader(std::string_view text, const std::string& path) {
  std::vector<std::set<std::string>> keys;
  std::string problem;
  auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth && problem.empty()) problem = fmt::format("nests deeper than {} levels", kMaxDepth);
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get_ref<const std::string&>()).second && problem.empty()) {
      problem = fmt::format("has the key '{}' twice", parsed.get_ref<const std::string&>());
    }
    return problem.empty();
  };
  Json header = Json::parse(text, watch, /*allow_exceptions=*/false);
  if (!problem.empty()) return InvalidArgument("{}: the safetensors header {}", path, problem);
  if (!header.is_object()) return InvalidArgument("{}: the safetensors header is not a JSON object", path);
  return header;
}

absl::StatusOr<std::vector<uint64_t>> ParseNumbers(const Json& value, const std::string& what) {
  std::vector<uint64_t> numbers;
  if (!value.is_array()) return InvalidArgument("{} is not a list of numbers", what);
  for (const Json& number : value) {
    if (!number.is_number_unsigned()) return InvalidArgument("{} holds something that is not a whole number >= 0", what);
    numbers.push_back(number.get<uint64_t>());
  }
  return numbers;
}

// The dtype by safetensors' own spelling only.
absl::StatusOr<DType> ParseFileDType(const Json& value, const std::string& what) {
  if (!value.is_string()) return InvalidArgument("{}: dtype is not a string", what);
  const std::string& name = value.get_ref<const std::string&>();
  absl::StatusOr<DType> dtype = ParseDType(name);
  if (dtype.ok() && DTypeName(*dtype) == name) return dtype;
  return Unimplemented("{}: dtype '{}' is not supported; supported are F32, BF16, F16, I64, I32, U8", what, name);
}

absl::StatusOr<TensorView> ParseTensor(const std::string& name, const Json& entry, absl::Span<const uint8_t> data,
                                       const std::string& path) {
  const std::string what = fmt::format("{}: tensor '{}'", path, name);
  if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") || !entry.contains("data_offsets") || entry.size() != 3) {
    return InvalidArgument("{} must have exactly dtype, shape and data_offsets", what);
  }
  TensorView tensor;
  tensor.name = name;
  ASSIGN_OR_RETURN(tensor.dtype, ParseFileDType(entry["dtype"], what));
  ASSIGN_OR_RETURN(const std::vector<uint64_t> shape, ParseNumbers(entry["shape"], what + ": shape"));
  ASSIGN_OR_RETURN(const std::vector<uint64_t> offsets, ParseNumbers(entry["data_offsets"], what + ": data_offsets"));

  int64_t bytes = static_cast<int64_t>(DTypeBytes(tensor.dtype));
  for (uint64_t d : shape) {
    if (__builtin_mul_overflow(bytes, d, &bytes)) return InvalidArgument("{}: the size of its shape overflows", what);
    tensor.shape.push_back(static_cast<int64_t>(d));
  }
  if (offsets.size() != 2 || offsets[0] > offsets[1]) return InvalidArgument("{}: data_offsets must be [begin, end]", what);
  if (offsets[1] - offsets[0] != static_cast<uint64_t>(bytes)) {
    return InvalidArgument("{}: data_offsets span {} bytes, dtype and shape need {}", what, offsets[1] - offsets[0], bytes);
  }
  if (offsets[1] > data.size()) {
    return DataLoss("{} ends at data byte {}, but the file has only {}: the file is truncated; copy it again", what, offsets[1], data.size());
  }
  tensor.bytes = data.subspan(offsets[0], offsets[1] - offsets[0]);
  return tensor;
}

// The tensors must tile the data: no hole, no overlap, nothing behind the last.
absl::Status CheckTiling(const std::map<std::string, TensorView>& tensors, absl::Span<const uint8_t> data, const std::string& path) {
  std::vector<const TensorView*> order;
  for (const auto& [name, tensor] : tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorView* a, const TensorView* b) {
    return std::pair(a->bytes.data(), a->bytes.size()) < std::pair(b->bytes.data(), b->bytes.size());
  });
  const uint8_t* end = data.data();
  for (const TensorView* tensor : order) {
    if (tensor->bytes.data() != end) {
      return InvalidArgument("{}: tensor '{}' begins at data byte {}, the one before ends at {}: {}", path, tensor->name,
                             tensor->bytes.data() - data.data(), end - data.data(),
                             tensor->bytes.data() < end ? "they overlap" : "there is a hole");
    }
    end += tensor->bytes.size();
  }
  if (end != data.data() + data.size()) {
    return InvalidArgument("{}: {} bytes lie behind the last tensor", path, data.data() + data.size() - end);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> MakeHeader(const std::vector<TensorView>& tensors, const std::map<std::string, std::string>& metadata,
                                       const std::string& path) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header[kMetadataKey] = metadata;
  std::set<std::string> names = {kMetadataKey};
  uint64_t offset = 0;
  for (const TensorView& tensor : tensors) {
    if (!names.insert(tensor.name).second) {
      return InvalidArgument("{}: tensor name '{}' is used twice or reserved", path, tensor.name);
    }
    const uint64_t bytes = static_cast<uint64_t>(tensor.elements()) * DTypeBytes(tensor.dtype);
    if (bytes != tensor.bytes.size()) {
      return InvalidArgument("{}: tensor '{}' has {} bytes, dtype and shape need {}", path, tensor.name, tensor.bytes.size(), bytes);
    }
    header[tensor.name] = {{"dtype", DTypeName(tensor.dtype)}, {"shape", tensor.shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const nlohmann::json::exception&) {   // the only failure of dump()
    return InvalidArgument("{}: a tensor name or a metadata string is not UTF-8", path);
  }
  text.resize((text.size() + 7) / 8 * 8, ' ');   // the data begins aligned
  return text;
}

}  // namespace

absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor) {
  std::vector<float> floats(static_cast<size_t>(tensor.elements()));
  absl::Status converted = ConvertToFloats(tensor.dtype, tensor.bytes.data(), floats.size(), floats.data());
  if (!converted.ok()) return Annotate(converted, fmt::format("tensor '{}'", tensor.name));
  return floats;
}

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  std::unique_ptr<SafetensorsFile> result(new SafetensorsFile());
  ASSIGN_OR_RETURN(result->file_, MappedFile::Open(path));
  const absl::Span<const uint8_t> bytes = result->file_->bytes();

  uint64_t header_bytes = 0;
  if (bytes.size() < sizeof(header_bytes)) {
    return DataLoss("{} has {} bytes; a safetensors file begins with an 8-byte header length: the file is truncated", path, bytes.size());
  }
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  if (header_bytes > kMaxHeaderBytes) {
    return InvalidArgument("{}: header length {} is above {}: not a safetensors file", path, header_bytes, kMaxHeaderBytes);
  }
  if (header_bytes > bytes.size() - sizeof(header_bytes)) {
    return DataLoss("{} has {} bytes, its header alone needs {}: the file is truncated; copy it again", path, bytes.size(),
                    header_bytes + sizeof(header_bytes));
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof(header_bytes), header_bytes);
  const absl::Span<const uint8_t> data = bytes.subspan(sizeof(header_bytes) + header_bytes);

  ASSIGN_OR_RETURN(const Json header, ParseHeader(text, path));
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadataKey) {
      if (!entry.is_object()) return InvalidArgument("{}: {} is not an object", path, kMetadataKey);
      for (const auto& [key, value] : entry.items()) {
        if (!value.is_string()) return InvalidArgument("{}: {} '{}' is not a string", path, kMetadataKey, key);
        result->metadata_[key] = value.get<std::string>();
      }
      continue;
    }
    ASSIGN_OR_RETURN(result->tensors_[name], ParseTensor(name, entry, data, path));
  }
  RETURN_IF_ERROR(CheckTiling(result->tensors_, data, path));
  return result;
}

absl::StatusOr<TensorView> SafetensorsFile::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return NotFound("{} has no tensor '{}'", file_->path(), name);
  return found->second;
}

absl::Status WriteSafetensors(const std::string& path, const std::vector<TensorView>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  ASSIGN_OR_RETURN(const std::string header, MakeHeader(tensors, metadata, path));
  const uint64_t header_bytes = header.size();
  std::vector<std::string_view> pieces = {{reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes)}, header};
  for (const TensorView& tensor : tensors) {
    pieces.emplace_back(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
  }
  return WriteFileAtomic(path, pieces);
}

}  // namespace membank
