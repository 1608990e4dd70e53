// The divergence of one pixel and its gradient, class by class; derived in docs/kernels/distill.md. With a_k = (z_k -
// max z) / T, e_k = exp(a_k), s = sum_k e_k of the own map, b, f, t of the other:
//   kl          T^2 (sum_k f_k (b_k - a_k) / t + log s - log t)    T / s (e_k - f_k s / t)
//   reverse_kl  T^2 (mean + log t - log s)                         T / s e_k (a_k - b_k - mean)
//   js          T^2 (mean + sum_k y_k log(q_k / m_k) / (s t)) / 2  T / (2 s t) x_k (log(p_k / m_k) - mean)
// mean: sum_k p_k (a_k - b_k), or sum_k p_k log(p_k / m_k) of js, with x_k = e_k t and y_k = f_k s. A class of
// probability 0 counts 0.
#pragma once

#include <cmath>
#include <limits>

#include "../common/cuda/reduce.cuh"
#include "params.h"

namespace metricseg::distill {

// What the gradient of a pixel needs.
template <typename T>
struct PixelStats {
  T max, other_max;  // max z, max y
  T sum, other_sum;  // s, t
  T mean;            // of reverse_kl and js
  T factor;          // of every class, with the incoming gradient
};

// Sums over the classes of a pixel. own, other: the numerators of mean, and of what js or kl adds.
template <typename T>
struct PixelSums {
  T sum = 0, other_sum = 0, own = 0, other = 0;
};

template <typename T>
__device__ __forceinline__ T product(T probability, T difference) {
  return probability == T(0) ? T(0) : probability * difference;
}

// log(1 + gap) for gap in [-1, 1], with sum = 1 + gap in more digits where gap is near -1.
template <typename T>
__device__ __forceinline__ T log_of_ratio(T gap, T sum) {
  const T rounded = T(1) + gap;
  const bool far = gap < T(-0.5);
  const T rest = far ? T(0) : (gap - (rounded - T(1))) * reciprocal(rounded);
  return std::log(far ? sum : rounded) + rest;
}

// z, y: logits in; out e, and f, or a - b of reverse_kl. Adds to s, t, and the numerators of kl and reverse_kl. `exists`:
// false for a class past the last.
template <typename T>
__device__ __forceinline__ void add_exponentials(Kind kind, const PixelStats<T>& stats, T inverse, bool exists, T& z,
                                                 T& y, PixelSums<T>& sums) {
  const T a = (z - stats.max) * inverse, b = (y - stats.other_max) * inverse;
  const T e = exists ? exp_nonpositive(a) : T(0), f = exists ? exp_nonpositive(b) : T(0);
  sums.sum += e;
  sums.other_sum += f;
  if (kind == Kind::kl) sums.other += product(f, b - a);
  if (kind == Kind::reverse_kl) sums.own += product(e, a - b);
  z = e;
  y = kind == Kind::reverse_kl ? a - b : f;
}

// e, f -> x, log(p / m); adds to the numerators of js.
template <typename T>
__device__ __forceinline__ void add_logarithms(T s, T t, T& e, T& f, PixelSums<T>& sums) {
  const T x = e * t, y = f * s, both = x + y;
  const T inverse = both < std::numeric_limits<T>::min() ? T(0) : reciprocal(both), gap = (x - y) * inverse;
  const T of_own = log_of_ratio(gap, T(2) * x * inverse);
  sums.own += product(x, of_own);
  sums.other += product(y, log_of_ratio(-gap, T(2) * y * inverse));
  e = x;
  f = of_own;
}

// The loss of a pixel from its sums over all classes; sets the rest of stats. incoming: gradient of the loss.
template <typename T>
__device__ __forceinline__ T finish_pixel(Kind kind, const PixelSums<T>& sums, T temperature, T incoming,
                                          PixelStats<T>& stats) {
  const T s = sums.sum, t = sums.other_sum, square = temperature * temperature;
  stats.sum = s;
  stats.other_sum = t;
  if (kind == Kind::js) {
    const T inverse = T(1) / (s * t);
    stats.mean = sums.own * inverse;
    stats.factor = T(0.5) * temperature * incoming * inverse;
    return square * T(0.5) * (stats.mean + sums.other * inverse);
  }
  const T logs = std::log(s) - std::log(t);
  stats.mean = sums.own / s;
  stats.factor = temperature * incoming / s;
  return square * (kind == Kind::kl ? sums.other / t + logs : stats.mean - logs);
}

// The gradient of each class, but for stats.factor, from what the functions above leave in z and y.
template <typename T, int KT>
__device__ __forceinline__ void to_gradient(Kind kind, const PixelStats<T>& stats, T (&z)[KT], const T (&y)[KT]) {
  if (kind == Kind::kl) {
    const T ratio = stats.sum / stats.other_sum;
#pragma unroll
    for (int k = 0; k < KT; ++k) z[k] -= ratio * y[k];
  } else {
#pragma unroll
    for (int k = 0; k < KT; ++k) z[k] = product(z[k], y[k] - stats.mean);
  }
}

}  // namespace metricseg::distill
