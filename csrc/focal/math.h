// Formulas of the focal family, forward beside backward, for one pixel; derived in docs/kernels/focal.md. Softmax form:
//   m = max z,  s = sum_k exp(z_k - m),  r = sum_{k != t} exp(z_k - m),  u = 1 - p = r / s,  -log p = (m - z_t) + log s
//   S = (1-e) w_t (-log p) + (e/K) sum_k w_k (-log q_k),  l = u^g S
//   dl/dz_k = a (q_k - [k = t]) + b (W q_k - w_k),  a = u^g (1-e) w_t + g u^(g-1) p S,  b = u^g e / K,  W = sum_k w_k
// z: the K interpolated logits, t: the label, w: the class weights, e: label smoothing, g: gamma; q_t - 1 = -u. T is
// the accumulator type; V is T itself, or a vector of T on the CPU. No branch depends on a pixel, so one formula serves
// both.
#pragma once

#include <cmath>
#include <limits>

#include "../common/macros.h"

namespace metricseg::focal {

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

// Sigmoid form, one class at a time. x: logit, t: target in [0, 1], s = sigmoid(x).
//   ce = softplus(x) - t x,  v = 1 - p_t = s (1-t) + (1-s) t,  l = alpha_t v^g ce,  alpha_t = alpha t + (1-alpha)(1-t)
//   dl/dx = alpha_t [ v^g (s - t) + g v^(g-1) ce (1 - 2t) s (1-s) ]
template <typename V>
struct SigmoidElement {
  V loss;
  V grad;
};

template <typename V, typename T>
METRICSEG_HD SigmoidElement<V> sigmoid_element(V x, V t, T gamma, T alpha) {
  using std::exp;
  using std::fabs;
  using std::log1p;
  const V zero(T(0)), one(T(1));
  // e = exp(-|x|); sigmoid of either sign without cancellation
  const V e = exp(-fabs(x));
  const V inv = one / (one + e);
  const V s = select(x >= zero, inv, e * inv);      // sigmoid(x)
  const V s_neg = select(x >= zero, e * inv, inv);  // 1 - sigmoid(x)
  // max(x, 0) - t x, in the form that is exact for t = 0 and t = 1, and 0 there for the infinite x that is right
  const V off = select(x >= zero, one - t, t);
  const V linear = select(off == zero, zero, off * fabs(x));
  const V ce = linear + log1p(e);
  const V v = s * (one - t) + s_neg * t;
  const V alpha_t = alpha >= T(0) ? V(alpha) * t + V(T(1) - alpha) * (one - t) : one;
  const V f = power(v, gamma);
  SigmoidElement<V> out;
  out.loss = alpha_t * f * ce;
  // s - t without cancellation: s (1-t) - (1-s) t
  const V residual = s * (one - t) - s_neg * t;
  V slope = zero;
  if (gamma != T(0)) {
    const V factor = V(gamma) * power(v, gamma - T(1)) * ce * (one - V(T(2)) * t) * s * s_neg;
    slope = select(v < V(Smallest<T>::normal), zero, factor);
  }
  out.grad = alpha_t * (f * residual + slope);
  return out;
}

}  // namespace metricseg::focal
