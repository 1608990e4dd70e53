// The tile loops of the contrast family, and the products of its engine, for the baseline of the processor family.
#define METRICSEG_SIMD baseline
#include "../common/simd/simd_begin.h"

#include "../engines/row_pairs/product_loops.h"
#include "cpu_epilogues.h"

#include "../common/simd/simd_end.h"

namespace metricseg::contrast {

const Workers baseline_workers = baseline::workers;

}  // namespace metricseg::contrast

namespace metricseg::row_pairs {

const Workers baseline_workers = baseline::workers;

}  // namespace metricseg::row_pairs
