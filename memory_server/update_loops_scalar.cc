// The update loops for one instruction set; CMakeLists.txt gives this file its -march.
#define MEMBANK_UPDATE_TABLE kScalarUpdateLoops
#define MEMBANK_UPDATE_NAME "scalar"
#include "memory_server/update_loops_impl.h"
