// The row loops of the focal family for AVX-512.
#if defined(__x86_64__)
#define METRICSEG_SIMD avx512
#include "../common/simd/simd_begin.h"

#include "cpu_rows.h"

#include "../common/simd/simd_end.h"

namespace metricseg::focal {

const Workers avx512_workers = avx512::workers;

}  // namespace metricseg::focal
#endif
