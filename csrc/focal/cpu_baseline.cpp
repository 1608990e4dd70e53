// The row loops of the focal family for the baseline of the processor family.
#define METRICSEG_SIMD baseline
#include "../common/simd/simd_begin.h"

#include "cpu_rows.h"

#include "../common/simd/simd_end.h"

namespace metricseg::focal {

const Workers baseline_workers = baseline::workers;

}  // namespace metricseg::focal
