#include "common/base/crc32c.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace membank {
namespace {

// The definition, bit by bit: reflected polynomial 0x82F63B78.
uint32_t Reference(const std::string& data) {
  uint32_t crc = ~0u;
  for (unsigned char byte : data) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82F63B78u : 0u);
  }
  return ~crc;
}

std::string Random(size_t size) {
  static std::mt19937 random(7);
  std::string data(size, '\0');
  for (char& c : data) c = static_cast<char>(random());
  return data;
}

constexpr size_t kSizes[] = {1, 7, 8, 9, 63, 255, 256, 511, 512, 513, 767, 768, 3071, 3072, 3073, 40000, 100003};

TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(Crc32c("123456789", 9), 0xE3069283u);
  EXPECT_EQ(Crc32c("", 0), 0u);
  EXPECT_EQ(Crc32c(std::string(32, '\0').data(), 32), 0x8A9136AAu);
}

TEST(Crc32c, ExtendsWhereItWasCut) {
  for (const size_t size : kSizes) {
    const std::string data = Random(size);
    for (const size_t cut : {size / 3, size - size / 5}) {
      EXPECT_EQ(ExtendCrc32c(Crc32c(data.data(), cut), data.data() + cut, size - cut), Reference(data)) << size << " cut " << cut;
    }
  }
}

// At every size around the strides, from and to odd addresses, with nothing written beyond the end.
TEST(Crc32c, EveryWayEqualsTheBitwiseReferenceAndCopies) {
  for (int i = 0; i < kCrc32cWays; ++i) {
    const Crc32cWay& way = GetCrc32cWay(i);
    if (!way.supported()) continue;
    for (const size_t size : kSizes) {
      const std::string data = Random(size);
      const std::string from = "-" + data;
      std::string to(size + 4, '+');
      const auto* const source = reinterpret_cast<const uint8_t*>(from.data() + 1);
      EXPECT_EQ(way.copy_and_extend(0, nullptr, source, size), Reference(data)) << way.name << " " << size;
      EXPECT_EQ(way.copy_and_extend(0, reinterpret_cast<uint8_t*>(to.data() + 3), source, size), Reference(data)) << way.name << " " << size;
      EXPECT_EQ(to, "+++" + data + "+") << way.name << " " << size;
    }
  }
}

}  // namespace
}  // namespace membank
