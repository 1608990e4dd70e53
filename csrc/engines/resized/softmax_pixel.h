// Cross-entropy and focal loss of one pixel with its gradient, as host-device functions; derived in
// docs/kernels/focal.md:
//   m = max z,  s = sum_k exp(z_k - m),  r = sum_{k != t} exp(z_k - m),  u = 1 - p = r / s,  -log p = (m - z_t) + log s
//   S = (1-e) w_t (-log p) + (e/K) sum_k w_k (-log q_k),  l = u^g S
//   dl/dz_k = a (q_k - [k = t]) + b (W q_k - w_k),  a = u^g (1-e) w_t + g u^(g-1) p S,  b = u^g e / K,  W = sum_k w_k
// z: the K interpolated logits, t: the label, w: the class weights, e: label smoothing, g: gamma; q_t - 1 = -u. T is
// the accumulator type; V is T itself, or a vector of T on the CPU. No branch depends on a pixel.
#pragma once

#include <cmath>
#include <limits>

#include "../../common/macros.h"

namespace metricseg::resized {

template <typename T>
struct Smallest {
  static constexpr T normal = std::numeric_limits<T>::min();
};

template <typename T>
struct SoftmaxParams {
  T gamma;
  T label_smoothing;  // e
  T smoothing_k;      // e / K
  T weight_total;     // W
};

template <typename V>
struct SoftmaxPixel {
  V nll;   // -log p
  V loss;  // l
  V a;     // coefficient of (q_k - [k = t])
  V b;     // coefficient of (W q_k - w_k); 0 without smoothing
};

// u^gamma, with special cases for the common exponents 0, 1 and 2.
template <typename V, typename T>
METRICSEG_HD V power(V u, T gamma) {
  using std::pow;
  if (gamma == T(0)) return V(T(1));
  if (gamma == T(1)) return u;
  if (gamma == T(2)) return u * u;
  return pow(u, V(gamma));
}

// target_gap = m - z_t >= 0; weighted_gap = sum_k w_k (m - z_k), read only with smoothing; weight = w_t.
template <typename V, typename T>
METRICSEG_HD SoftmaxPixel<V> softmax_pixel(V sum, V rest, V target_gap, V weighted_gap, V weight,
                                           const SoftmaxParams<T>& c) {
  using std::exp;
  using std::log1p;
  const V zero(T(0)), one(T(1));
  // log s, the log-sum-exp of z - m; rest keeps the digits that s = 1 + rest has lost
  const V lse = log1p(select(target_gap == zero, rest, sum - one));
  SoftmaxPixel<V> out;
  // -log p = (m - z_t) + log s
  out.nll = target_gap + lse;
  // S = (1-e) w_t (-log p) + (e/K) sum_k w_k (-log q_k)
  V ce = weight * out.nll;
  if (c.label_smoothing != T(0)) {
    ce = V(T(1) - c.label_smoothing) * ce + V(c.smoothing_k) * (weighted_gap + V(c.weight_total) * lse);
  }
  if (c.gamma == T(0)) {
    out.loss = ce;
    out.a = V(T(1) - c.label_smoothing) * weight;
    out.b = V(c.smoothing_k);
    return out;
  }
  const V u = rest / sum;
  const V p = exp(-out.nll);
  const V f = power(u, c.gamma);
  out.loss = f * ce;
  // g u^(g-1) p S; if u is below the normal numbers or p is 0, the limit is 0
  const V decay = select(p == zero, zero, p * ce);
  const V slope = select(u < V(Smallest<T>::normal), zero, V(c.gamma) * power(u, c.gamma - T(1)) * decay);
  out.a = f * V(T(1) - c.label_smoothing) * weight + slope;
  out.b = f * V(c.smoothing_k);
  return out;
}

}  // namespace metricseg::resized
