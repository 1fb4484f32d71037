#include "common/tensors/safetensors.h"

#include <numeric>

#include "common/base/status_macros.h"
#include "gtest/gtest.h"
#include "tests/common/tensors/damage.h"

namespace membank {
namespace {

std::string WithHeader(const std::string& header, size_t data_bytes) {
  const uint64_t size = header.size();
  return std::string(reinterpret_cast<const char*>(&size), 8) + header + std::string(data_bytes, '\0');
}

absl::Status OpenText(const std::string& header, size_t data_bytes) {
  const std::string path = WriteTemporary("header.safetensors", WithHeader(header, data_bytes));
  const absl::Status status = SafetensorsFile::Open(path).status();
  std::remove(path.c_str());
  return status;
}

// Opens a file and reads every byte that it hands out.
absl::Status ReadAll(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(path));
  uint64_t sum = 0;
  for (const auto& [name, tensor] : file->tensors()) sum = std::accumulate(tensor.bytes.begin(), tensor.bytes.end(), sum);
  return sum == UINT64_MAX ? absl::InternalError("") : absl::OkStatus();
}

TEST(Safetensors, ReadsTheReferenceWritersFile) {
  const auto file = SafetensorsFile::Open(SourcePath("tests/golden/gguf/tiny.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata().at("made_by"), "gguf-py");
  const auto tensor = (*file)->Find("f16");
  ASSERT_TRUE(tensor.ok());
  EXPECT_EQ(tensor->shape, (std::vector<int64_t>{2, 3, 4}));
  const auto floats = ToFloats(*tensor);
  ASSERT_TRUE(floats.ok());
  EXPECT_EQ((*floats)[2], 65504.0f);
  const absl::Status missing = (*file)->Find("nope").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(std::string(missing.message()).find("'nope'"), std::string::npos);
}

TEST(Safetensors, RoundTripKeepsOrderTypesAndBytes) {
  const std::vector<uint8_t> bytes = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  const absl::Span<const uint8_t> span(bytes);
  const std::vector<TensorView> tensors = {{"z", DType::kF16, {2, 2}, span.subspan(0, 8)}, {"a", DType::kU8, {3}, span.subspan(8, 3)},
                                           {"empty", DType::kF32, {0, 5}, {}}, {"scalar", DType::kI32, {}, span.subspan(4, 4)}};
  const std::string path = WriteTemporary("round.safetensors", "old");
  ASSERT_TRUE(WriteSafetensors(path, tensors, {{"k", "v\n\"\xc3\xa9"}}).ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->metadata().at("k"), "v\n\"\xc3\xa9");
  ASSERT_EQ((*file)->tensors().size(), tensors.size());
  for (const TensorView& expected : tensors) {
    const auto found = (*file)->Find(expected.name);
    ASSERT_TRUE(found.ok());
    EXPECT_EQ(found->dtype, expected.dtype);
    EXPECT_EQ(found->shape, expected.shape);
    EXPECT_EQ(found->bytes, expected.bytes);
  }
  EXPECT_LT((*file)->Find("z")->bytes.data(), (*file)->Find("a")->bytes.data());   // the order given
  std::remove(path.c_str());
}

TEST(Safetensors, WriterRefusesWhatTheReaderWould) {
  const std::vector<uint8_t> bytes(8);
  const std::string path = WriteTemporary("bad.safetensors", "old");
  const TensorView good = {"t", DType::kF32, {2}, bytes};
  EXPECT_EQ(WriteSafetensors(path, {good, good}, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafetensors(path, {{"__metadata__", DType::kF32, {2}, bytes}}, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafetensors(path, {{"t", DType::kF32, {3}, bytes}}, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafetensors(path, {{"\xff", DType::kF32, {2}, bytes}}, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteSafetensors("/nonexistent/x.safetensors", {good}, {}).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*ReadFile(path), "old");
  std::remove(path.c_str());
}

TEST(Safetensors, MalformedHeadersNameTheProblem) {
  const struct {
    std::string header, expect;
    size_t data_bytes = 8;
    absl::StatusCode code = absl::StatusCode::kInvalidArgument;
  } cases[] = {
      {R"([])", "not a JSON object", 0},
      {R"({"a":)", "not a JSON object"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}})", "'a' twice"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "'dtype' twice"},
      {R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", "need 12"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", "[begin, end]"},
      {R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})", "whole number"},
      {R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})", "whole number"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}})", "overflows", 0},
      {R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,0]}})", "overflows", 0},
      {R"({"a":{"dtype":"F32","shape":[2]}})", "exactly dtype, shape and data_offsets"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "behind the last", 9},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "a hole"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", "overlap"},
      {R"({"__metadata__":{"k":1}})", "not a string", 0},
      {R"({"a":[[[[[[]]]]]]})", "nests deeper", 0},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", "truncated", 7, absl::StatusCode::kDataLoss},
      {R"({"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}})", "'F64' is not supported", 8, absl::StatusCode::kUnimplemented},
      {R"({"a":{"dtype":"fp32","shape":[2],"data_offsets":[0,8]}})", "'fp32' is not supported", 8, absl::StatusCode::kUnimplemented},
  };
  for (const auto& c : cases) {
    const absl::Status status = OpenText(c.header, c.data_bytes);
    EXPECT_EQ(status.code(), c.code) << c.header << " " << status;
    EXPECT_NE(std::string(status.message()).find(c.expect), std::string::npos) << c.header << " " << status;
    EXPECT_NE(std::string(status.message()).find("header.safetensors"), std::string::npos) << status;
  }
}

TEST(Safetensors, HostileHeaderLengthIsRefusedBeforeMemoryIsTaken) {
  const std::string path = WriteTemporary("length.safetensors", std::string(8, '\xff') + "{}");
  EXPECT_EQ(SafetensorsFile::Open(path).status().code(), absl::StatusCode::kInvalidArgument);
  std::remove(path.c_str());
  EXPECT_EQ(SafetensorsFile::Open("/nonexistent.safetensors").status().code(), absl::StatusCode::kNotFound);
}

TEST(Safetensors, DamageNeverCrashes) {
  const auto whole = ReadFile(SourcePath("tests/golden/gguf/tiny.safetensors"));
  ASSERT_TRUE(whole.ok());
  ExpectCutsFail(*whole, ReadAll);
  EXPECT_GT(CountRefusedFlips(*whole, 5000, 500, ReadAll), 1000);
}

}  // namespace
}  // namespace membank
