// Raw messages are byte for byte what protobuf writes, and the reader takes whatever protobuf can write and refuses the rest.
#include "common/rpc/raw_message.h"

#include <random>

#include "common/base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "membank/v1/memory.pb.h"

namespace membank {
namespace {

std::string Bytes(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

// The bytes cut into slices at the given sizes, as a socket would deliver them.
grpc::ByteBuffer Sliced(const std::string& bytes, size_t piece) {
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size(); begin += piece) slices.emplace_back(bytes.substr(begin, piece));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

struct Parsed {
  absl::Status status;
  std::vector<std::pair<uint32_t, std::string>> small;
  std::string bulk;
};

Parsed Parse(const grpc::ByteBuffer& buffer) {
  Parsed parsed;
  parsed.status = ParseRawMessage(
      buffer, v1::FetchChunk::kDataFieldNumber,
      [&](uint32_t field, const std::string& bytes) {
        parsed.small.emplace_back(field, bytes);
        return absl::OkStatus();
      },
      [&](absl::Span<const uint8_t> piece) {
        parsed.bulk.append(reinterpret_cast<const char*>(piece.data()), piece.size());
        return absl::OkStatus();
      });
  return parsed;
}

v1::FetchChunk Chunk(size_t data_bytes) {
  v1::FetchChunk chunk;
  chunk.mutable_header()->mutable_id()->set_level(2);
  chunk.mutable_header()->mutable_id()->set_cluster(300);
  chunk.mutable_header()->set_crc32c(0xdeadbeef);
  chunk.mutable_header()->set_total_bytes(data_bytes);
  std::mt19937 random(1);
  for (size_t i = 0; i < data_bytes; ++i) chunk.mutable_data()->push_back(static_cast<char>(random()));
  return chunk;
}

TEST(RawMessage, EqualsTheSerialisedMessage) {
  for (size_t size : {0, 1, 127, 128, 16383, 16384, 512 << 10}) {
    const v1::FetchChunk chunk = Chunk(size);
    v1::FetchChunk head;
    *head.mutable_header() = chunk.header();
    const auto data = absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(chunk.data().data()), chunk.data().size());
    const std::string expected = chunk.SerializeAsString();
    EXPECT_EQ(Bytes(MakeRawMessage(head.SerializeAsString(), v1::FetchChunk::kDataFieldNumber, data, nullptr)), expected) << size;
    for (size_t piece : {size_t{1}, size_t{7}, size_t{8192}, size_t{1} << 30}) {
      const Parsed parsed = Parse(Sliced(expected, piece));
      ASSERT_TRUE(parsed.status.ok()) << parsed.status;
      EXPECT_EQ(parsed.bulk, chunk.data());
      ASSERT_EQ(parsed.small.size(), 1u);
      EXPECT_EQ(parsed.small[0].second, chunk.header().SerializeAsString());
    }
  }
}

TEST(RawMessage, HoldsItsOwnerUntilTheBufferIsGone) {
  auto owner = std::make_shared<std::string>(1000, 'x');
  std::weak_ptr<std::string> alive = owner;
  const auto data = absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(owner->data()), owner->size());
  grpc::ByteBuffer buffer = MakeRawMessage("", 2, data, std::move(owner));
  EXPECT_FALSE(alive.expired());
  buffer.Clear();
  EXPECT_TRUE(alive.expired());
}

TEST(RawMessage, SkipsFieldsOfALaterRelease) {
  // Field 9 varint, field 10 fixed32, field 11 fixed64, then data.
  const std::string bytes = std::string("\x48\x96\x01", 3) + std::string("\x55\x01\x02\x03\x04", 5) +
                            std::string("\x59\x01\x02\x03\x04\x05\x06\x07\x08", 9) + std::string("\x12\x03" "abc", 5);
  const Parsed parsed = Parse(Sliced(bytes, 3));
  ASSERT_TRUE(parsed.status.ok()) << parsed.status;
  EXPECT_EQ(parsed.bulk, "abc");
  ASSERT_EQ(parsed.small.size(), 1u);  // a fixed32 is handed out, whatever it is
  EXPECT_EQ(parsed.small[0], std::make_pair(uint32_t{10}, std::string("\x01\x02\x03\x04")));
}

TEST(RawMessage, EveryTruncationIsRefusedOrAShorterMessage) {
  const std::string bytes = Chunk(300).SerializeAsString();
  for (size_t size = 0; size < bytes.size(); ++size) {
    v1::FetchChunk judge;
    EXPECT_EQ(Parse(Sliced(bytes.substr(0, size), 5)).status.ok(), judge.ParseFromString(bytes.substr(0, size))) << size;
  }
}

TEST(RawMessage, HostileLengthsAllocateNothing) {
  const std::string huge_small("\x0a\xff\xff\xff\xff\x0f", 6), huge_bulk("\x12\xff\xff\xff\xff\xff\xff\xff\x7f", 9), group("\x0b\x00", 2),
      endless(11, '\xff');
  for (const std::string& bytes : {huge_small, huge_bulk, group, endless}) {
    EXPECT_EQ(Parse(Sliced(bytes, 4)).status.code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace membank
