#include "common/base/malloc_tuning.h"

#include <malloc.h>

namespace membank {

void TuneMalloc() {
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 2000 << 20);
  mallopt(M_TOP_PAD, 64 << 20);
}

void KeepFreeMemoryBelow(uint64_t bytes) {
  if (mallinfo2().fordblks > bytes) malloc_trim(0);
}

}  // namespace membank
