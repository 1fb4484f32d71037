#include "common/tensors/gguf.h"

#include <bit>
#include <numeric>

#include "common/base/status_macros.h"
#include "common/tensors/safetensors.h"
#include "gtest/gtest.h"
#include "tests/common/tensors/damage.h"

namespace membank {
namespace {

// Opens a file and reads everything that it hands out.
absl::Status ReadAll(const std::string& path) {
  ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  for (const auto& [name, tensor] : file->tensors()) {
    const absl::Status status = file->Dequantize(name).status();
    if (!status.ok() && status.code() != absl::StatusCode::kUnimplemented) return status;
  }
  return absl::OkStatus();
}

class Builder {
 public:
  template <typename T>
  Builder& Put(T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  Builder& String(const std::string& text) {
    Put<uint64_t>(text.size());
    bytes += text;
    return *this;
  }
  Builder& Begin(uint64_t tensors, uint64_t entries, uint32_t version = 3) {
    bytes += "GGUF";
    return Put<uint32_t>(version).Put<uint64_t>(tensors).Put<uint64_t>(entries);
  }
  Builder& Tensor(const std::string& name, std::vector<uint64_t> dimensions, uint32_t type, uint64_t offset) {
    String(name).Put<uint32_t>(dimensions.size());
    for (uint64_t d : dimensions) Put<uint64_t>(d);
    return Put<uint32_t>(type).Put<uint64_t>(offset);
  }
  Builder& Data(size_t size) {
    bytes.resize((bytes.size() + 31) / 32 * 32 + size, '\0');
    return *this;
  }
  absl::StatusOr<std::unique_ptr<GgufFile>> Open() const {
    const std::string path = WriteTemporary("built.gguf", bytes);
    auto file = GgufFile::Open(path);
    std::remove(path.c_str());
    return file;
  }

  std::string bytes;
};

void ExpectError(const Builder& builder, absl::StatusCode code, const std::string& expect) {
  const absl::Status status = builder.Open().status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_NE(std::string(status.message()).find(expect), std::string::npos) << status;
  EXPECT_NE(std::string(status.message()).find("built.gguf"), std::string::npos) << status;
}

TEST(Gguf, DequantizesEveryTypeAsTheReferenceDoes) {
  for (const auto& [golden, count] : {std::pair("tests/golden/gguf/tiny", 6u), std::pair("tests/golden/gguf/quants", 7u)}) {
    const auto file = GgufFile::Open(SourcePath(golden) + ".gguf");
    ASSERT_TRUE(file.ok()) << file.status();
    const auto expected = SafetensorsFile::Open(SourcePath(golden) + ".safetensors");
    ASSERT_TRUE(expected.ok());
    ASSERT_EQ((*expected)->tensors().size(), count);
    for (const auto& [name, view] : (*expected)->tensors()) {
      EXPECT_EQ((*file)->tensors().at(name).shape, view.shape) << name;
      const auto floats = (*file)->Dequantize(name);
      ASSERT_TRUE(floats.ok()) << floats.status();
      EXPECT_EQ(*floats, *ToFloats(view)) << name;   // bit-equal but for the sign of zero
    }
  }
}

// Sums over whole tensors, printed by tests/golden/gguf/make_quants.py.
TEST(Gguf, Gemma3DequantizesAsTheReferenceDoes) {
  const std::string path = std::string(std::getenv("MEMBANK_CACHE")) + "/models/gemma-3-270m-q4_k_m.gguf";
  if (!std::ifstream(path)) GTEST_SKIP() << path << " is not there; deploy/setup --models installs it";
  const auto file = GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  for (const auto& [name, expected] : {std::pair("blk.17.post_ffw_norm.weight", 233061250588672u),
                                       std::pair("blk.17.attn_v.weight", 9458564680178808192u),
                                       std::pair("blk.17.ffn_up.weight", 8284918878932463616u),
                                       std::pair("blk.17.attn_output.weight", 5583108590952258224u),
                                       std::pair("blk.17.ffn_down.weight", 8561853074658162568u)}) {
    const auto floats = (*file)->Dequantize(name);
    ASSERT_TRUE(floats.ok()) << floats.status();
    uint64_t sum = 0;
    for (size_t i = 0; i < floats->size(); ++i) sum += std::bit_cast<uint32_t>((*floats)[i]) * (i + 1);
    EXPECT_EQ(sum, expected) << name;
  }
}

TEST(Gguf, MetadataOfEveryKind) {
  const auto opened = GgufFile::Open(SourcePath("tests/golden/gguf/tiny.gguf"));
  ASSERT_TRUE(opened.ok());
  const GgufFile& file = **opened;
  EXPECT_EQ(*file.GetInt("test.u8"), 200);
  EXPECT_EQ(*file.GetInt("test.i8"), -100);
  EXPECT_EQ(*file.GetInt("test.u16"), 60000);
  EXPECT_EQ(*file.GetInt("test.i16"), -30000);
  EXPECT_EQ(*file.GetInt("test.u32"), 4000000000);
  EXPECT_EQ(*file.GetInt("test.i32"), -2000000000);
  EXPECT_EQ(*file.GetInt("test.u64"), int64_t{1} << 62);
  EXPECT_EQ(*file.GetInt("test.i64"), -(int64_t{1} << 62));
  EXPECT_EQ(*file.GetFloat("test.f32"), 0.5);
  EXPECT_EQ(*file.GetFloat("test.f64"), 1e-300);
  EXPECT_TRUE(std::get<bool>(file.metadata().at("test.bool")));
  EXPECT_EQ(*file.GetString("test.string"), "na\xc3\xafve \xf0\x9f\x98\x80");
  EXPECT_EQ(*file.GetStrings("test.strings"), (std::vector<std::string>{"a", "", "\xe4\xb8\xad"}));
  EXPECT_EQ(*file.GetInts("test.ints"), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(std::get<std::vector<double>>(std::get<GgufArray>(file.metadata().at("test.floats"))), (std::vector<double>{0.25, -1.5}));

  EXPECT_EQ(file.GetInt("absent").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(file.GetInt("test.string").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file.GetInts("test.strings").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(file.Dequantize("absent").status().code(), absl::StatusCode::kNotFound);
  const absl::Status unsupported = file.Dequantize("iq4_nl").status();
  EXPECT_EQ(unsupported.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(std::string(unsupported.message()).find("is IQ4_NL; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q2_K"), std::string::npos);
}

TEST(Gguf, MalformedFilesNameTheProblem) {
  using absl::StatusCode;
  ExpectError(Builder().Put<uint32_t>(0x12345678).Put<uint32_t>(3), StatusCode::kInvalidArgument, "not a GGUF file");
  ExpectError(Builder().Begin(0, 0, 1), StatusCode::kUnimplemented, "version 1; versions 2 and 3");
  ExpectError(Builder().Begin(0, 0, 3u << 24), StatusCode::kUnimplemented, "big-endian");
  ExpectError(Builder().Begin(0, 1).String("k").Put<uint32_t>(99), StatusCode::kInvalidArgument, "unknown type 99");
  ExpectError(Builder().Begin(0, 1).String("k").Put<uint32_t>(7).Put<uint8_t>(2), StatusCode::kInvalidArgument, "neither 0 nor 1");
  ExpectError(Builder().Begin(0, 1).String("k").Put<uint32_t>(10).Put<uint64_t>(1ull << 63), StatusCode::kInvalidArgument, "above 2^63");
  ExpectError(Builder().Begin(0, 2).String("k").Put<uint32_t>(0).Put<uint8_t>(1).String("k").Put<uint32_t>(0).Put<uint8_t>(1),
              StatusCode::kInvalidArgument, "'k' twice");
  ExpectError(Builder().Begin(2, 0).Tensor("t", {4}, 0, 0).Tensor("t", {4}, 0, 32).Data(64), StatusCode::kInvalidArgument, "'t' twice");
  ExpectError(Builder().Begin(1, 0).Tensor("t", {4, 1, 1, 1, 1}, 0, 0).Data(32), StatusCode::kInvalidArgument, "5 dimensions");
  ExpectError(Builder().Begin(1, 0).Tensor("t", {33}, 2, 0).Data(64), StatusCode::kInvalidArgument, "not a multiple of Q4_0's block");
  ExpectError(Builder().Begin(1, 0).Tensor("t", {1ull << 62, 1ull << 62}, 0, 0).Data(64), StatusCode::kInvalidArgument, "overflows");
  ExpectError(Builder().Begin(1, 0).Tensor("t", {4}, 77, 0).Data(64), StatusCode::kInvalidArgument, "unknown ggml type 77");
  ExpectError(Builder().Begin(1, 0).Tensor("t", {4}, 0, 8).Data(64), StatusCode::kInvalidArgument, "alignment 32");
  ExpectError(Builder().Begin(1, 0).Tensor("t", {100}, 0, 0).Data(64), StatusCode::kDataLoss, "takes 400 bytes");
  ExpectError(Builder().Begin(2, 0).Tensor("t", {16}, 0, 0).Tensor("u", {4}, 0, 32).Data(64), StatusCode::kInvalidArgument, "overlaps");
  ExpectError(Builder().Begin(0, 1).String("general.alignment").Put<uint32_t>(4).Put<uint32_t>(24), StatusCode::kInvalidArgument, "power of two");
}

TEST(Gguf, HostileCountsAreRefusedBeforeMemoryIsTaken) {
  const uint64_t huge = UINT64_MAX / 2;
  ExpectError(Builder().Begin(huge, 0), absl::StatusCode::kDataLoss, "truncated");
  ExpectError(Builder().Begin(0, huge), absl::StatusCode::kDataLoss, "truncated");
  ExpectError(Builder().Begin(0, 1).Put<uint64_t>(huge), absl::StatusCode::kDataLoss, "truncated");
  for (uint32_t element : {0u, 4u, 8u, 12u}) {
    ExpectError(Builder().Begin(0, 1).String("k").Put<uint32_t>(9).Put<uint32_t>(element).Put<uint64_t>(huge), absl::StatusCode::kDataLoss,
                "'k'");
  }
}

TEST(Gguf, DamageNeverCrashes) {
  const auto whole = ReadFile(SourcePath("tests/golden/gguf/tiny.gguf"));
  ASSERT_TRUE(whole.ok());
  // The writer pads the last tensor; cuts inside that padding leave a whole file.
  const auto file = GgufFile::Open(SourcePath("tests/golden/gguf/tiny.gguf"));
  ASSERT_TRUE(file.ok());
  size_t padding = SIZE_MAX;
  for (const auto& [name, tensor] : (*file)->tensors()) {
    const auto last = std::string_view(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
    const size_t end = whole->rfind(last) + last.size();
    padding = std::min(padding, whole->size() - end);
  }
  ASSERT_LT(padding, 32u);
  ExpectCutsFail(whole->substr(0, whole->size() - padding), ReadAll);
  EXPECT_GT(CountRefusedFlips(*whole, 5000, 1200, ReadAll), 1000);
}

}  // namespace
}  // namespace membank
