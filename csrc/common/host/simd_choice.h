// METRICSEG_WIDEST_OF(T): the loops of a family for the widest vectors that this processor has, if the family's three
// tables by type are in scope.
#pragma once

#include <cstdlib>
#include <cstring>

namespace metricseg {

// The widest vectors that this processor has; METRICSEG_SIMD=avx2 or baseline narrows them, for tests and comparisons.
#if defined(__x86_64__)
#define METRICSEG_WIDEST_OF(T) \
  ::metricseg::widest(sizeof(T) == 8 ? avx2_workers : avx512_workers, avx2_workers, baseline_workers).of(T())
template <typename Workers>
const Workers& widest(const Workers& avx512, const Workers& avx2, const Workers& baseline) {
  const char* only = std::getenv("METRICSEG_SIMD");
  const auto allowed = [only](const char* name) { return only == nullptr || std::strcmp(only, name) == 0; };
  __builtin_cpu_init();
  if (allowed("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return avx512;
  }
  if (allowed("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2;
  return baseline;
}
#else
#define METRICSEG_WIDEST_OF(T) baseline_workers.of(T())
#endif

}  // namespace metricseg
