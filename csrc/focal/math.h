// The formulas of the focal family, forward beside backward, for one pixel.
//
// Softmax form. z: the K interpolated logits, t: the label, w: the class weights, e: label smoothing, g: gamma.
//   m = max z,  s = sum_k exp(z_k - m),  r = sum_{k != t} exp(z_k - m)
//   p = q_t,  u = 1 - p = r / s                                  (never by subtraction: u keeps its digits at p -> 1)
//   -log p = (m - z_t) + log s                                   (log1p(r) where z_t = m)
//   S = (1-e) w_t (-log p) + (e/K) sum_k w_k (-log q_k)
//   l = u^g S
//   dl/dz_k = a (q_k - [k = t]) + b (W q_k - w_k),  a = u^g (1-e) w_t + g u^(g-1) p S,  b = u^g e / K,  W = sum_k w_k
// with q_t - 1 = -u, so that a pixel already learned gets its tiny gradient and never 0 * inf.
#pragma once

#include <cmath>
#include <limits>

#include "../common/macros.h"

namespace metricseg::focal {

template <typename T>
struct SoftmaxParams {
  T gamma;
  T smoothing;     // e
  T smoothing_k;   // e / K
  T weight_total;  // W
};

template <typename T>
struct SoftmaxPixel {
  T nll;   // -log p
  T loss;  // l
  T a;     // coefficient of (q_k - [k = t])
  T b;     // coefficient of (W q_k - w_k); 0 without smoothing
};

// u^gamma with the exponents that people use spelled out.
template <typename T>
METRICSEG_HD T power(T u, T gamma) {
  if (gamma == T(0)) return T(1);
  if (gamma == T(1)) return u;
  if (gamma == T(2)) return u * u;
  return std::pow(u, gamma);
}

// target_gap = m - z_t >= 0; weighted_gap = sum_k w_k (m - z_k), read only with smoothing; weight = w_t.
template <typename T>
METRICSEG_HD SoftmaxPixel<T> softmax_pixel(T sum, T rest, T target_gap, T weighted_gap, T weight,
                                           const SoftmaxParams<T>& c) {
  const T log_sum = target_gap == T(0) ? std::log1p(rest) : std::log(sum);
  SoftmaxPixel<T> out;
  // -log p = (m - z_t) + log s
  out.nll = target_gap + log_sum;
  // S = (1-e) w_t (-log p) + (e/K) sum_k w_k (-log q_k)
  T ce = weight * out.nll;
  if (c.smoothing != T(0)) {
    ce = (T(1) - c.smoothing) * ce + c.smoothing_k * (weighted_gap + c.weight_total * log_sum);
  }
  if (c.gamma == T(0)) {
    out.loss = ce;
    out.a = (T(1) - c.smoothing) * weight;
    out.b = c.smoothing_k;
    return out;
  }
  const T u = rest / sum;
  const T p = std::exp(-out.nll);
  const T f = power(u, c.gamma);
  out.loss = f * ce;
  // g u^(g-1) p S; below the normal numbers every factor it meets is 0 as well, and so is the limit
  const T slope = u < std::numeric_limits<T>::min() ? T(0) : c.gamma * power(u, c.gamma - T(1)) * p * ce;
  out.a = f * (T(1) - c.smoothing) * weight + slope;
  out.b = f * c.smoothing_k;
  return out;
}

// Sigmoid form, one class at a time. x: logit, t: target in [0, 1], s = sigmoid(x).
//   ce = softplus(x) - t x,  v = 1 - p_t = s (1-t) + (1-s) t,  l = alpha_t v^g ce,  alpha_t = alpha t + (1-alpha)(1-t)
//   dl/dx = alpha_t [ v^g (s - t) + g v^(g-1) ce (1 - 2t) s (1-s) ]
template <typename T>
struct SigmoidElement {
  T loss;
  T grad;
};

template <typename T>
METRICSEG_HD SigmoidElement<T> sigmoid_element(T x, T t, T gamma, T alpha) {
  // e = exp(-|x|); sigmoid of either sign without cancellation
  const T e = std::exp(-std::fabs(x));
  const T inv = T(1) / (T(1) + e);
  const T s = x >= T(0) ? inv : e * inv;      // sigmoid(x)
  const T s_neg = x >= T(0) ? e * inv : inv;  // 1 - sigmoid(x)
  // max(x, 0) - t x, in the form that is exact for t = 0 and t = 1
  const T linear = x >= T(0) ? (T(1) - t) * x : -t * x;
  const T ce = linear + std::log1p(e);
  const T v = s * (T(1) - t) + s_neg * t;
  const T alpha_t = alpha >= T(0) ? alpha * t + (T(1) - alpha) * (T(1) - t) : T(1);
  const T f = power(v, gamma);
  SigmoidElement<T> out;
  out.loss = alpha_t * f * ce;
  // s - t without cancellation: s (1-t) - (1-s) t
  const T residual = s * (T(1) - t) - s_neg * t;
  const T slope = gamma == T(0) || v < std::numeric_limits<T>::min()
                      ? T(0)
                      : gamma * power(v, gamma - T(1)) * ce * (T(1) - T(2) * t) * s * s_neg;
  out.grad = alpha_t * (f * residual + slope);
  return out;
}

}  // namespace metricseg::focal
