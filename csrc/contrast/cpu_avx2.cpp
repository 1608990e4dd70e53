// The tile loops of the contrast family, and the products of its engine, for AVX2.
#if defined(__x86_64__)
#define METRICSEG_SIMD avx2
#include "../common/simd/simd_begin.h"

#include "../engines/row_pairs/product_loops.h"
#include "cpu_epilogues.h"

#include "../common/simd/simd_end.h"

namespace metricseg::contrast {

const Workers avx2_workers = avx2::workers;

}  // namespace metricseg::contrast

namespace metricseg::row_pairs {

const Workers avx2_workers = avx2::workers;

}  // namespace metricseg::row_pairs
#endif
