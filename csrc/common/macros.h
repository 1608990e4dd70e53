// Macros that let one formula compile for the CPU, for CUDA and for the host shim of the tests.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define METRICSEG_HD __host__ __device__ __forceinline__
#else
// Forced inlining also compiles the formulas with the vector width of the CPU loop that calls them.
#define METRICSEG_HD inline __attribute__((always_inline))
#endif

namespace metricseg {

METRICSEG_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// c ? a : b, also for formulas on a vector of pixels.
template <typename T>
METRICSEG_HD T select(bool c, T a, T b) {
  return c ? a : b;
}

}  // namespace metricseg
