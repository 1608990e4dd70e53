// The tile loops of the segments family for AVX2.
#if defined(__x86_64__)
#define METRICSEG_SIMD avx2
#include "../common/simd/simd_begin.h"

#include "cpu_loops.h"

#include "../common/simd/simd_end.h"

namespace metricseg::segments {

const Workers avx2_workers = avx2::workers;

}  // namespace metricseg::segments
#endif
