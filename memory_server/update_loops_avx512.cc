// The update loops for one instruction set; CMakeLists.txt gives this file its -march.
#define MEMBANK_UPDATE_TABLE kAvx512UpdateLoops
#define MEMBANK_UPDATE_NAME "avx512"
#include "memory_server/update_loops_impl.h"
