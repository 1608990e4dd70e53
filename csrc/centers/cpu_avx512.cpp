// The tile loops of the centers family for AVX-512.
#if defined(__x86_64__)
#define METRICSEG_SIMD avx512
#include "../common/simd/simd_begin.h"

#include "cpu_loops.h"

#include "../common/simd/simd_end.h"

namespace metricseg::centers {

const Workers avx512_workers = avx512::workers;

}  // namespace metricseg::centers
#endif
