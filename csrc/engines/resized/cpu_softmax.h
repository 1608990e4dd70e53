// Steps of a softmax over blocks of pixels [K, P, N]. No loop over classes branches or gathers. The entry of the target
// is removed before the exponentials are summed, so the sum is that of the others. It is put back such that its gradient
// is the same product as all others. Derivation: docs/kernels/focal.md.
#pragma once

#include "cpu_pixels.h"

namespace metricseg::resized {
namespace METRICSEG_SIMD {

// Moves the logit of each pixel's label out of z; a pixel without a label has target_logit max and weight 0. px: arrays
// [P, N] label, max, target_logit, weight.
template <typename T, typename Pixels>
inline void take_targets(const T* class_weight, int P, T* z, const Pixels& px) {
  constexpr int N = Lanes<T>::count;
  const int64_t n = int64_t{P} * N;
  for (int64_t i = 0; i < n; ++i) {
    const bool labeled = px.label[i] >= T(0);
    if (labeled) {
      const int64_t t = static_cast<int64_t>(px.label[i]);
      px.target_logit[i] = z[t * n + i];
      px.weight[i] = class_weight ? class_weight[t] : T(1);
      z[t * n + i] = -std::numeric_limits<T>::infinity();
    } else {
      px.target_logit[i] = px.max[i];
      px.weight[i] = T(0);
    }
  }
}

// rest = sum_k exp(z_k - max), each exponential kept in place of its logit
template <int G, typename T>
METRICSEG_HD void exponentials(int64_t classes, int P, T* z, const T* max, T* rest) {
  using V = Lanes<T>;
  constexpr int N = V::count;
  V m[G], sum[G];
  for (int g = 0; g < G; ++g) {
    m[g] = V::load(max + g * N);
    sum[g] = V(T(0));
  }
  for (int64_t k = 0; k < classes; ++k, z += P * N) {
    for (int g = 0; g < G; ++g) {
      const V e = exp_below_zero(V::load(z + g * N) - m[g]);
      e.store(z + g * N);
      sum[g] = sum[g] + e;
    }
  }
  for (int g = 0; g < G; ++g) sum[g].store(rest + g * N);
}

// The same of all vectors of a block, as a call: one copy for all families.
template <typename T>
__attribute__((noinline)) void all_exponentials(int64_t classes, int P, T* z, const T* max, T* rest) {
  constexpr int N = Lanes<T>::count;
  int p = 0;
  for (; p + 4 <= P; p += 4) exponentials<4>(classes, P, z + p * N, max + p * N, rest + p * N);
  for (; p < P; ++p) exponentials<1>(classes, P, z + p * N, max + p * N, rest + p * N);
}

// sum_k w_k (max - z_k), for label smoothing
template <typename T>
__attribute__((noinline)) void weighted_gaps(int64_t classes, const T* weight, int P, const T* z, const T* max,
                                             T* gap) {
  using V = Lanes<T>;
  constexpr int N = V::count;
  for (int p = 0; p < P; ++p) {
    const V m = V::load(max + p * N);
    V sum(T(0));
    for (int64_t k = 0; k < classes; ++k) {
      sum = sum + V(weight ? weight[k] : T(1)) * (m - V::load(z + (k * P + p) * N));
    }
    sum.store(gap + p * N);
  }
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::resized
