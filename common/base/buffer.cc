#include "common/base/buffer.h"

#include <sys/mman.h>

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

Buffer Buffer::Mapped(size_t size) {
  void* p = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  Buffer buffer;
  buffer.data_ = {static_cast<uint8_t*>(p), Free{size}};
  buffer.size_ = size;
  return buffer;
}

void Buffer::Free::operator()(uint8_t* p) const {
  if (mapped_bytes > 0) ::munmap(p, mapped_bytes);
  else std::free(p);
}

}  // namespace membank
