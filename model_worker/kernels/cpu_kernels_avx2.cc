// The kernel table for one instruction set; CMakeLists.txt gives this file its -march.
#define MEMBANK_ISA avx2
#include "model_worker/kernels/cpu_kernels_impl.h"
