#include "common/base/buffer.h"

#include <cstdlib>
#include <new>

namespace membank {

namespace {
constexpr size_t kAlignment = 64;
}

Buffer::Buffer(size_t size) : size_(size) {
  const size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
  void* p = std::aligned_alloc(kAlignment, rounded == 0 ? kAlignment : rounded);
  if (p == nullptr) throw std::bad_alloc();
  data_.reset(static_cast<uint8_t*>(p));
}

void Buffer::Free::operator()(uint8_t* p) const { std::free(p); }

}  // namespace membank
