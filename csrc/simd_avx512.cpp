// All vector loops for AVX-512.
#if defined(__x86_64__)
#define METRICSEG_SIMD avx512
#include "simd_loops.h"
#endif
