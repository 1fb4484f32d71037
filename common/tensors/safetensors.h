// safetensors files: 8-byte little-endian header length, JSON header, row-major little-endian data (huggingface/safetensors README).
// The reader maps the file and validates it whole before it hands out a view: header length (<= 100 MB), offsets in range, no holes,
// no overlap, sizes that match shape x dtype, no duplicate keys. A truncated file is DATA_LOSS, a malformed one INVALID_ARGUMENT; both
// name the file. Read-only after Open; any thread.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "common/base/file.h"
#include "common/tensors/dtype.h"

namespace membank {

// A named tensor whose bytes lie in a mapped file (or anywhere the owner keeps alive).
struct TensorView {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  absl::Span<const uint8_t> bytes;

  int64_t elements() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

// Converts F32, BF16 or F16 elements to float.
absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor);

class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<SafetensorsFile>> Open(const std::string& path);

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  // NOT_FOUND names the tensor and the file.
  absl::StatusOr<TensorView> Find(const std::string& name) const;

 private:
  SafetensorsFile() = default;
  std::shared_ptr<MappedFile> file_;
  std::map<std::string, TensorView> tensors_;
  std::map<std::string, std::string> metadata_;
};

// Writes `tensors` in the given order to `path`, atomically (temporary file, fsync, rename), streaming: no second copy in memory.
absl::Status WriteSafetensors(const std::string& path, const std::vector<TensorView>& tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace membank
