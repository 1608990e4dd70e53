// Formulas of the focal family, forward beside backward, for one pixel; derived in docs/kernels/focal.md. The softmax
// form is that of the engine, softmax_pixel.h. T is the accumulator type; V is T itself, or a vector of T on the CPU. No
// branch depends on a pixel, so one formula serves both.
#pragma once

#include "../engines/resized/softmax_pixel.h"

namespace metricseg::focal {

using resized::power;
using resized::Smallest;
using resized::softmax_pixel;
using resized::SoftmaxParams;
using resized::SoftmaxPixel;

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
