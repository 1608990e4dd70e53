// The row loops of the focal family for AVX2.
#if defined(__x86_64__)
#define METRICSEG_SIMD avx2
#include "../common/simd/simd_begin.h"

#include "cpu_rows.h"

#include "../common/simd/simd_end.h"

namespace metricseg::focal {

const Workers avx2_workers = avx2::workers;

}  // namespace metricseg::focal
#endif
