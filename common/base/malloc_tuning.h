// glibc returns large freed buffers to the kernel and refaults them: 2 us per 4 KB page, five to ten times the cost of the copy.
#pragma once

#include <cstdint>

namespace membank {

// Call first in main of every process that moves blocks. Raises M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD.
void TuneMalloc();

// Returns freed pages to the kernel when malloc holds more than `bytes` free, so that what large temporary values leave behind does not count
// beside a memory budget. Takes the locks of all arenas: not for hot paths. Any thread.
void KeepFreeMemoryBelow(uint64_t bytes);

}  // namespace membank
