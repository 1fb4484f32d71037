#include "common/tensors/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "common/base/status_macros.h"
#include "common/tensors/ggml_types.h"

namespace membank {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian");

constexpr uint32_t kMagic = 0x46554747;   // "GGUF"
constexpr uint64_t kMaxDimensions = 4;    // GGML_MAX_DIMS
constexpr int64_t kDefaultAlignment = 32;

enum ValueType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };

// Reads forward through the file; every read is checked against what is left.
class Cursor {
 public:
  explicit Cursor(const MappedFile& file) : file_(file) {}

  size_t position() const { return position_; }
  size_t left() const { return file_.bytes().size() - position_; }

  absl::Status Need(uint64_t bytes, std::string_view what) const {
    if (bytes <= left()) return absl::OkStatus();
    return DataLoss("{} ends at byte {}, but {} at byte {} needs {} more: the file is truncated or damaged; copy it again", file_.path(),
                    file_.bytes().size(), what, position_, bytes - left());
  }

  template <typename T>
  absl::StatusOr<T> Read(std::string_view what) {
    RETURN_IF_ERROR(Need(sizeof(T), what));
    T value;
    std::memcpy(&value, file_.bytes().data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  absl::StatusOr<std::string> ReadString(std::string_view what) {
    ASSIGN_OR_RETURN(const uint64_t size, Read<uint64_t>(what));
    RETURN_IF_ERROR(Need(size, what));
    std::string value(reinterpret_cast<const char*>(file_.bytes().data()) + position_, size);
    position_ += size;
    return value;
  }

  absl::Status Invalid(std::string_view what, std::string_view problem) const {
    return InvalidArgument("{}: {} (before byte {}) {}", file_.path(), what, position_, problem);
  }

 private:
  const MappedFile& file_;
  size_t position_ = 0;
};

// One scalar as int64 (integers and bool) or double.
template <typename T>
absl::StatusOr<std::conditional_t<std::is_floating_point_v<T>, double, int64_t>> ReadScalar(Cursor& cursor, const std::string& what) {
  ASSIGN_OR_RETURN(const T value, cursor.Read<T>(what));
  if constexpr (std::is_same_v<T, uint64_t>) {
    if (value > INT64_MAX) return cursor.Invalid(what, "is above 2^63 - 1");
  }
  return value;
}

template <typename T>
absl::StatusOr<GgufArray> ReadScalars(Cursor& cursor, uint64_t count, const std::string& what) {
  if (count > cursor.left() / sizeof(T)) return cursor.Need(UINT64_MAX, what);
  std::vector<std::conditional_t<std::is_floating_point_v<T>, double, int64_t>> values(count);
  for (auto& value : values) {
    ASSIGN_OR_RETURN(value, ReadScalar<T>(cursor, what));
  }
  return values;
}

absl::StatusOr<GgufArray> ReadStrings(Cursor& cursor, uint64_t count, const std::string& what) {
  if (count > cursor.left() / sizeof(uint64_t)) return cursor.Need(UINT64_MAX, what);
  std::vector<std::string> values(count);
  for (std::string& value : values) {
    ASSIGN_OR_RETURN(value, cursor.ReadString(what));
  }
  return values;
}

absl::StatusOr<GgufArray> ReadArray(Cursor& cursor, const std::string& what) {
  ASSIGN_OR_RETURN(const uint32_t type, cursor.Read<uint32_t>(what));
  ASSIGN_OR_RETURN(const uint64_t count, cursor.Read<uint64_t>(what));
  switch (type) {
    case kU8: case kBool: return ReadScalars<uint8_t>(cursor, count, what);
    case kI8: return ReadScalars<int8_t>(cursor, count, what);
    case kU16: return ReadScalars<uint16_t>(cursor, count, what);
    case kI16: return ReadScalars<int16_t>(cursor, count, what);
    case kU32: return ReadScalars<uint32_t>(cursor, count, what);
    case kI32: return ReadScalars<int32_t>(cursor, count, what);
    case kU64: return ReadScalars<uint64_t>(cursor, count, what);
    case kI64: return ReadScalars<int64_t>(cursor, count, what);
    case kF32: return ReadScalars<float>(cursor, count, what);
    case kF64: return ReadScalars<double>(cursor, count, what);
    case kString: return ReadStrings(cursor, count, what);
    case kArray: return Unimplemented("{} is an array of arrays, which membank does not read", what);
    default: return cursor.Invalid(what, fmt::format("has the unknown element type {}", type));
  }
}

template <typename T>
absl::StatusOr<GgufValue> Wrap(absl::StatusOr<T> value) {
  if (!value.ok()) return value.status();
  return GgufValue(std::in_place_type<T>, *std::move(value));
}

absl::StatusOr<GgufValue> ReadValue(Cursor& cursor, const std::string& what) {
  ASSIGN_OR_RETURN(const uint32_t type, cursor.Read<uint32_t>(what));
  switch (type) {
    case kU8: return Wrap(ReadScalar<uint8_t>(cursor, what));
    case kI8: return Wrap(ReadScalar<int8_t>(cursor, what));
    case kU16: return Wrap(ReadScalar<uint16_t>(cursor, what));
    case kI16: return Wrap(ReadScalar<int16_t>(cursor, what));
    case kU32: return Wrap(ReadScalar<uint32_t>(cursor, what));
    case kI32: return Wrap(ReadScalar<int32_t>(cursor, what));
    case kU64: return Wrap(ReadScalar<uint64_t>(cursor, what));
    case kI64: return Wrap(ReadScalar<int64_t>(cursor, what));
    case kF32: return Wrap(ReadScalar<float>(cursor, what));
    case kF64: return Wrap(ReadScalar<double>(cursor, what));
    case kString: return Wrap(cursor.ReadString(what));
    case kArray: return Wrap(ReadArray(cursor, what));
    case kBool: {
      ASSIGN_OR_RETURN(const uint8_t value, cursor.Read<uint8_t>(what));
      if (value > 1) return cursor.Invalid(what, "is a bool that is neither 0 nor 1");
      return GgufValue(std::in_place_type<bool>, value == 1);
    }
    default: return cursor.Invalid(what, fmt::format("has the unknown type {}", type));
  }
}

struct TensorInfo {
  GgufTensor tensor;
  uint64_t offset = 0;   // from the beginning of the data
  uint64_t bytes = 0;
};

absl::StatusOr<TensorInfo> ReadTensorInfo(Cursor& cursor) {
  TensorInfo info;
  ASSIGN_OR_RETURN(info.tensor.name, cursor.ReadString("a tensor's name"));
  const std::string what = fmt::format("tensor '{}'", info.tensor.name);
  ASSIGN_OR_RETURN(const uint32_t dimensions, cursor.Read<uint32_t>(what));
  if (dimensions > kMaxDimensions) return cursor.Invalid(what, fmt::format("has {} dimensions; the most is {}", dimensions, kMaxDimensions));
  for (uint32_t i = 0; i < dimensions; ++i) {
    ASSIGN_OR_RETURN(const int64_t extent, ReadScalar<uint64_t>(cursor, what));
    info.tensor.shape.insert(info.tensor.shape.begin(), extent);
  }
  ASSIGN_OR_RETURN(info.tensor.type, cursor.Read<uint32_t>(what));
  ASSIGN_OR_RETURN(info.offset, cursor.Read<uint64_t>(what));

  const GgmlType* type = FindGgmlType(info.tensor.type);
  if (type == nullptr) return cursor.Invalid(what, fmt::format("has the unknown ggml type {}", info.tensor.type));
  const uint64_t row = info.tensor.shape.empty() ? 1 : static_cast<uint64_t>(info.tensor.shape.back());
  if (row % type->block_elements != 0) {
    return cursor.Invalid(what, fmt::format("has rows of {} elements, not a multiple of {}'s block of {}", row, type->name, type->block_elements));
  }
  info.bytes = row / type->block_elements;
  bool overflow = __builtin_mul_overflow(info.bytes, type->block_bytes, &info.bytes);
  uint64_t elements = row;
  for (size_t i = 0; i + 1 < info.tensor.shape.size(); ++i) {
    overflow |= __builtin_mul_overflow(info.bytes, static_cast<uint64_t>(info.tensor.shape[i]), &info.bytes);
    overflow |= __builtin_mul_overflow(elements, static_cast<uint64_t>(info.tensor.shape[i]), &elements);
  }
  if (overflow) return cursor.Invalid(what, "has a shape whose size overflows");
  return info;
}

// Gives each tensor its bytes: inside the data, aligned, without overlap (padding between them is allowed).
absl::Status PlaceTensors(std::vector<TensorInfo>& infos, absl::Span<const uint8_t> data, uint64_t alignment, const std::string& path) {
  std::sort(infos.begin(), infos.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes); });
  uint64_t end = 0;
  for (TensorInfo& info : infos) {
    const std::string& name = info.tensor.name;
    if (info.offset % alignment != 0) {
      return InvalidArgument("{}: tensor '{}' begins at data byte {}, not a multiple of the alignment {}", path, name, info.offset, alignment);
    }
    if (info.offset < end) return InvalidArgument("{}: tensor '{}' overlaps the one before it", path, name);
    if (info.offset > data.size() || info.bytes > data.size() - info.offset) {
      return DataLoss("{}: tensor '{}' takes {} bytes from data byte {}, but the file has only {}: it is truncated; copy it again", path, name,
                      info.bytes, info.offset, data.size());
    }
    info.tensor.bytes = data.subspan(info.offset, info.bytes);
    end = info.offset + info.bytes;
  }
  return absl::OkStatus();
}

absl::Status CheckVersion(uint32_t magic, uint32_t version, const std::string& path) {
  if (magic != kMagic) return InvalidArgument("{} is not a GGUF file: it does not begin with 'GGUF'", path);
  if (version == 2 || version == 3) return absl::OkStatus();
  if ((version & 0xffff) == 0 && version != 0) return Unimplemented("{} is a big-endian GGUF file; little-endian ones are supported", path);
  return Unimplemented("{} is GGUF version {}; versions 2 and 3 are supported", path, version);
}

template <typename T>
absl::StatusOr<T> Get(const std::map<std::string, GgufValue>& metadata, const std::string& key, std::string_view kind, const std::string& path) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) return NotFound("{} has no metadata '{}'", path, key);
  if (const T* value = std::get_if<T>(&found->second)) return *value;
  return InvalidArgument("{}: metadata '{}' is not {}", path, key, kind);
}

template <typename T>
absl::StatusOr<T> GetArray(const std::map<std::string, GgufValue>& metadata, const std::string& key, std::string_view kind,
                           const std::string& path) {
  ASSIGN_OR_RETURN(GgufArray array, Get<GgufArray>(metadata, key, kind, path));
  if (T* value = std::get_if<T>(&array)) return std::move(*value);
  return InvalidArgument("{}: metadata '{}' is not {}", path, key, kind);
}

}  // namespace

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  std::unique_ptr<GgufFile> result(new GgufFile());
  ASSIGN_OR_RETURN(result->file_, MappedFile::Open(path));
  Cursor cursor(*result->file_);

  ASSIGN_OR_RETURN(const uint32_t magic, cursor.Read<uint32_t>("the magic number"));
  ASSIGN_OR_RETURN(const uint32_t version, cursor.Read<uint32_t>("the version"));
  RETURN_IF_ERROR(CheckVersion(magic, version, path));
  ASSIGN_OR_RETURN(const uint64_t tensor_count, cursor.Read<uint64_t>("the number of tensors"));
  ASSIGN_OR_RETURN(const uint64_t metadata_count, cursor.Read<uint64_t>("the number of metadata entries"));

  for (uint64_t i = 0; i < metadata_count; ++i) {   // not reserved: a false count ends at the end of the file
    ASSIGN_OR_RETURN(std::string key, cursor.ReadString("a metadata key"));
    ASSIGN_OR_RETURN(GgufValue value, ReadValue(cursor, fmt::format("metadata '{}'", key)));
    if (!result->metadata_.emplace(key, std::move(value)).second) return InvalidArgument("{} has the metadata '{}' twice", path, key);
  }
  std::vector<TensorInfo> infos;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    ASSIGN_OR_RETURN(TensorInfo info, ReadTensorInfo(cursor));
    infos.push_back(std::move(info));
  }

  int64_t alignment = kDefaultAlignment;
  if (result->metadata_.count("general.alignment") > 0) {
    ASSIGN_OR_RETURN(alignment, result->GetInt("general.alignment"));
    if (alignment < 1 || !std::has_single_bit(static_cast<uint64_t>(alignment))) {
      return InvalidArgument("{}: general.alignment is {}; it must be a power of two", path, alignment);
    }
  }
  const absl::Span<const uint8_t> bytes = result->file_->bytes();
  const uint64_t mask = static_cast<uint64_t>(alignment) - 1;
  const uint64_t data_begin = std::min<uint64_t>((cursor.position() + mask) & ~mask, bytes.size());
  RETURN_IF_ERROR(PlaceTensors(infos, bytes.subspan(data_begin), static_cast<uint64_t>(alignment), path));
  for (TensorInfo& info : infos) {
    const std::string name = info.tensor.name;
    if (!result->tensors_.emplace(name, std::move(info.tensor)).second) return InvalidArgument("{} has the tensor '{}' twice", path, name);
  }
  return result;
}

absl::StatusOr<int64_t> GgufFile::GetInt(const std::string& key) const { return Get<int64_t>(metadata_, key, "a whole number", file_->path()); }

absl::StatusOr<double> GgufFile::GetFloat(const std::string& key) const { return Get<double>(metadata_, key, "a float", file_->path()); }

absl::StatusOr<bool> GgufFile::GetBool(const std::string& key) const { return Get<bool>(metadata_, key, "true or false", file_->path()); }

absl::StatusOr<std::string> GgufFile::GetString(const std::string& key) const {
  return Get<std::string>(metadata_, key, "a string", file_->path());
}

absl::StatusOr<std::vector<std::string>> GgufFile::GetStrings(const std::string& key) const {
  return GetArray<std::vector<std::string>>(metadata_, key, "a list of strings", file_->path());
}

absl::StatusOr<std::vector<int64_t>> GgufFile::GetInts(const std::string& key) const {
  return GetArray<std::vector<int64_t>>(metadata_, key, "a list of whole numbers", file_->path());
}

absl::StatusOr<std::vector<double>> GgufFile::GetFloats(const std::string& key) const {
  return GetArray<std::vector<double>>(metadata_, key, "a list of floats", file_->path());
}

absl::StatusOr<std::vector<float>> GgufFile::Dequantize(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return NotFound("{} has no tensor '{}'", file_->path(), name);
  const GgufTensor& tensor = found->second;
  const GgmlType& type = *FindGgmlType(tensor.type);
  if (type.dequantize == nullptr) {
    return Unimplemented("{}: tensor '{}' is {}; supported are {}. Convert the file with llama-quantize", file_->path(), name, type.name,
                         kSupportedGgmlTypes);
  }
  const size_t blocks = tensor.bytes.size() / type.block_bytes;
  std::vector<float> floats(blocks * type.block_elements);
  type.dequantize(tensor.bytes.data(), blocks, floats.data());
  return floats;
}

}  // namespace membank
