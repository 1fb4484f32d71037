// GGUF files (ggml-org/llama.cpp, versions 2 and 3): metadata, and tensors of the types in kSupportedGgmlTypes (ggml_types.h). Everything is
// validated against the file's size before memory is allocated. Read-only after Open; any thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/file.h"

namespace membank {

using GgufArray = std::variant<std::vector<int64_t>, std::vector<double>, std::vector<std::string>>;
using GgufValue = std::variant<int64_t, double, bool, std::string, GgufArray>;

struct GgufTensor {
  std::string name;
  uint32_t type = 0;             // ggml_type
  std::vector<int64_t> shape;    // outermost first, as in PyTorch (GGUF stores the reverse)
  absl::Span<const uint8_t> bytes;
};

class GgufFile {
 public:
  static absl::StatusOr<std::unique_ptr<GgufFile>> Open(const std::string& path);

  const std::map<std::string, GgufValue>& metadata() const { return metadata_; }
  const std::map<std::string, GgufTensor>& tensors() const { return tensors_; }
  absl::StatusOr<int64_t> GetInt(const std::string& key) const;       // NOT_FOUND / INVALID_ARGUMENT name key and file
  absl::StatusOr<double> GetFloat(const std::string& key) const;
  absl::StatusOr<bool> GetBool(const std::string& key) const;
  absl::StatusOr<std::string> GetString(const std::string& key) const;
  absl::StatusOr<std::vector<std::string>> GetStrings(const std::string& key) const;
  absl::StatusOr<std::vector<int64_t>> GetInts(const std::string& key) const;
  absl::StatusOr<std::vector<double>> GetFloats(const std::string& key) const;
  // Dequantised, row-major. UNIMPLEMENTED names an unsupported type and the supported ones.
  absl::StatusOr<std::vector<float>> Dequantize(const std::string& name) const;

 private:
  GgufFile() = default;
  std::shared_ptr<MappedFile> file_;
  std::map<std::string, GgufValue> metadata_;
  std::map<std::string, GgufTensor> tensors_;
};

}  // namespace membank
