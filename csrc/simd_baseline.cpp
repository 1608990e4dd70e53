// All vector loops for the baseline of the processor family.
#define METRICSEG_SIMD baseline
#include "simd_loops.h"
