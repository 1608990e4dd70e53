// All vector loops for AVX2.
#if defined(__x86_64__)
#define METRICSEG_SIMD avx2
#include "simd_loops.h"
#endif
