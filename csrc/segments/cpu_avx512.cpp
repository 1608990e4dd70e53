// The tile loops of the segments family for AVX-512.
#if defined(__x86_64__)
#define METRICSEG_SIMD avx512
#include "../common/simd/simd_begin.h"

#include "cpu_loops.h"

#include "../common/simd/simd_end.h"

namespace metricseg::segments {

const Workers avx512_workers = avx512::workers;

}  // namespace metricseg::segments
#endif
