// The tile loops of the segments family for the baseline of the processor family.
#define METRICSEG_SIMD baseline
#include "../common/simd/simd_begin.h"

#include "cpu_loops.h"

#include "../common/simd/simd_end.h"

namespace metricseg::segments {

const Workers baseline_workers = baseline::workers;

}  // namespace metricseg::segments
