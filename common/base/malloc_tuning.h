// glibc returns large freed buffers to the kernel and refaults them: 2 us per 4 KB page, five to ten times the cost of the copy.
#pragma once

namespace membank {

// Call first in main of every process that moves blocks. Raises M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD.
void TuneMalloc();

}  // namespace membank
