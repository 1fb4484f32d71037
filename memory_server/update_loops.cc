#include "memory_server/update_loops.h"

namespace membank {

// Each is the same source, compiled with other flags.
extern const UpdateLoops kScalarUpdateLoops, kAvx2UpdateLoops, kAvx512UpdateLoops;

bool Supported(UpdateIsa isa) {
  if (isa == UpdateIsa::kScalar) return true;
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  static const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return isa == UpdateIsa::kAvx2 ? avx2 : avx512;
}

const UpdateLoops& Loops(UpdateIsa isa) {
  return isa == UpdateIsa::kAvx512 ? kAvx512UpdateLoops : isa == UpdateIsa::kAvx2 ? kAvx2UpdateLoops : kScalarUpdateLoops;
}

const UpdateLoops& Loops() {
  static const UpdateLoops& best =
      Loops(Supported(UpdateIsa::kAvx512) ? UpdateIsa::kAvx512 : Supported(UpdateIsa::kAvx2) ? UpdateIsa::kAvx2 : UpdateIsa::kScalar);
  return best;
}

}  // namespace membank
