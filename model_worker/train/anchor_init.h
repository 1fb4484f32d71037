// A new anchor as a Hugging Face folder: the start of a training from scratch. No Torch in this header.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "common/tensors/dtype.h"

namespace membank {

struct AnchorInitOptions {
  std::string config;      // a config.json, or the name of one of AnchorPresets()
  std::string tokenizer;   // directory whose tokenizer files go with the anchor
  int64_t vocabulary = 0;  // instead of the configuration's; the tokenizer's must fit
  int64_t context = 0;     // instead of the configuration's
  uint64_t seed = 0;
  DType dtype = DType::kF32;
  std::string output;      // must not exist, or be empty
};

struct NewAnchor {
  std::string config;      // config.json as written
  std::string fingerprint;
  uint64_t parameters = 0;
};

// "tiny, small"
std::string AnchorPresets();

// Nothing is written when anything does not fit. ALREADY_EXISTS when `output` holds files.
absl::StatusOr<NewAnchor> InitAnchor(const AnchorInitOptions& options);
// Of a configuration or preset, without making it.
absl::StatusOr<uint64_t> CountAnchorParameters(const std::string& config);

// What an anchor needs beside its weights, where `from` has it: the tokenizer's files and the generation settings.
absl::Status CopyTokenizerFiles(const std::string& from, const std::string& to);

}  // namespace membank
