// OpenMP's threads (LibTorch's and ours) wait for their next piece of work by spinning, about a millisecond long. Where other processes want
// the same cores, a spinning thread takes the core from the one it waits for.
#pragma once

namespace membank {

// Call first in main of every process that computes with LibTorch. Unless the environment says how to wait (OMP_WAIT_POLICY, GOMP_SPINCOUNT),
// sets a short spin, long enough for the gap between two operations. libgomp reads it when it is loaded, so the program starts itself once
// again; where that is impossible it goes on as it is.
void TuneThreads(char** argv);

}  // namespace membank
