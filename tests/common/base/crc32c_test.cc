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

TEST(Crc32c, KnownAnswers) {
  EXPECT_EQ(Crc32c("123456789", 9), 0xE3069283u);
  EXPECT_EQ(Crc32c("", 0), 0u);
  EXPECT_EQ(Crc32c(std::string(32, '\0').data(), 32), 0x8A9136AAu);
}

TEST(Crc32c, EqualsBitwiseReferenceAtEverySizeAroundTheStrides) {
  std::mt19937 random(7);
  for (size_t size : {1, 7, 8, 9, 63, 4095, 4096, 12287, 12288, 12289, 40000, 100003}) {
    std::string data(size, '\0');
    for (char& c : data) c = static_cast<char>(random());
    EXPECT_EQ(Crc32c(data.data(), size), Reference(data)) << size;
    const size_t cut = random() % size;
    EXPECT_EQ(ExtendCrc32c(Crc32c(data.data(), cut), data.data() + cut, size - cut), Reference(data)) << size << " cut " << cut;
  }
}

}  // namespace
}  // namespace membank
