// The softmax form and the sigmoid form on a label row: the softmax couples the classes of a pixel, the sigmoid does
// not. Losses and counts accumulate in registers, in double if they are summed.
#pragma once

#include "../engines/resized/pixels.cuh"
#include "math.h"
#include "params.h"

namespace metricseg::focal {

using namespace resized;

// Blocks on a multiprocessor, so that the register tile fits: 128, 168 or 255 registers a thread with gradient.
template <typename T>
constexpr int resident_blocks(int kt, bool grad) {
  return (sizeof(T) == 8 || kt > 20 ? 2 : kt > 12 ? 3 : 4) + (sizeof(T) < 8 && !grad);
}

// Coefficients of the gradient of a pixel, for the second kernel of a call that takes two.
//   dl/dz_k = scale exp(z_k - max) - [k = t] scale rest + smooth (ratio exp(z_k - max) - w_k)
// with rest the sum of exp(z_k - max) over k != t, and ratio = W / sum.
template <typename T>
struct PixelCoefs {
  T max, rest, scale, smooth, ratio;
};

template <typename T>
struct CudaParams : Params<T> {
  Partial* partial = nullptr;            // [blocks] or null
  PixelCoefs<T>* pixel_coefs = nullptr;  // [B, H, W] or null

  METRICSEG_HD T* loss_map() const { return this->loss.template as<T>(); }
  METRICSEG_HD int32_t* argmax_map() const { return this->argmax.template as<int32_t>(); }
  METRICSEG_HD T grad_loss_at(int64_t image, int64_t k, int64_t y, int64_t x) const {
    return this->grad_loss ? this->grad_loss.template as<T>()[this->grad_loss.offset(image, k, y, x)] : T(1);
  }
};

// Running sums of a thread.
struct Accumulator {
  double loss = 0, weight = 0;
  int valid = 0, correct = 0;
};

// Loss and gradient coefficients of one pixel.
template <typename T>
struct PixelLoss {
  bool takes_part;
  T loss;
  PixelCoefs<T> coefs;
};

// The softmax of one pixel: max z, sum of exp(z_k - max) over k != t, max - z_t, sum_k w_k (max - z_k).
template <typename T>
struct PixelStats {
  T max, rest, gap, weighted_gap;
};

template <typename T>
__device__ __forceinline__ PixelLoss<T> pixel_loss(const CudaParams<T>& p, const SoftmaxParams<T>& c, int label,
                                                   const PixelStats<T>& stats, T grad_loss) {
  const T sum = stats.rest + exp_nonpositive(-stats.gap), inverse = T(1) / sum;
  const T weight = p.weight == nullptr ? T(1) : p.weight[label];
  const SoftmaxPixel<T> pixel = softmax_pixel(sum, stats.rest, stats.gap, stats.weighted_gap, weight, c);
  PixelLoss<T> v;
  v.takes_part = p.keep_above == nullptr || !(pixel.nll <= *p.keep_above);  // NaN takes part
  v.loss = pixel.loss;
  v.coefs = {stats.max, stats.rest, grad_loss * pixel.a * inverse, grad_loss * pixel.b, c.weight_total * inverse};
  return v;
}

template <typename T>
__device__ __forceinline__ void accumulate(const CudaParams<T>& p, const PixelLoss<T>& v, int label, int best,
                                           Accumulator& sums) {
  if (!v.takes_part) return;
  sums.loss += v.loss;
  if (p.weight != nullptr) sums.weight += p.weight[label];  // see with_weight
  ++sums.valid;
  sums.correct += p.argmax_map() != nullptr && best == label;
}

// Without class weights each pixel weighs 1: their sum is known at the end, and costs no double per pixel before.
template <typename T>
__device__ __forceinline__ Accumulator with_weight(const CudaParams<T>& p, Accumulator sums) {
  if (p.weight == nullptr) sums.weight = sums.valid;
  return sums;
}

template <typename T>
__device__ __forceinline__ T map_value(int label, bool takes_part, T loss, T ignored_loss) {
  if (label == kOutOfRange) return std::numeric_limits<T>::quiet_NaN();
  return takes_part ? loss : ignored_loss;
}

template <typename T, int KT, bool Grad>
struct SoftmaxForm {
  const CudaParams<T>& p;
  BadLabels& bad;
  SoftmaxParams<T> c;
  Accumulator sums;

  __device__ __forceinline__ SoftmaxForm(const CudaParams<T>& params, BadLabels& bad) : p(params), bad(bad) {
    c = softmax_params<T>(p);
  }

  __device__ __forceinline__ int fetch(const Fragment<T>& fragment, int y, int y_end) const {
    return fragment.active && y < y_end ? fetch_class(p, p.classes, fragment.label_offset + y * p.target.y) : kIgnored;
  }

  __device__ __forceinline__ Accumulator total() const { return with_weight(p, sums); }

  __device__ __forceinline__ T class_weight(int k) const { return p.weight == nullptr ? T(1) : p.weight[k]; }

  // Lowest class of the largest logit; NaN counts as largest, as in torch.argmax.
  __device__ __forceinline__ int argmax(const Fragment<T>& fragment, int groups, const T (&z)[KT]) const {
    T best = z[0];
    int at = fragment.class0;
#pragma unroll
    for (int k = 1; k < KT; ++k) {
      if (fragment.class0 + k < p.classes && (z[k] > best || (z[k] != z[k] && best == best))) {
        best = z[k];
        at = fragment.class0 + k;
      }
    }
    if (at >= p.classes) best = -std::numeric_limits<T>::infinity();
    for (int step = groups / 2; step > 0; step /= 2) {
      const T other = __shfl_xor_sync(kFullMask, best, step);
      const int other_at = __shfl_xor_sync(kFullMask, at, step);
      const bool tie = other == best || (other != other && best != best);
      if (tie ? other_at < at : other > best || (other != other && best == best)) {
        best = other;
        at = other_at;
      }
    }
    return at;
  }

  // z -> exp(z - max); returns the loss of the pixel
  __device__ __forceinline__ PixelLoss<T> normalize(const Fragment<T>& fragment, int groups, int label, T grad_loss,
                                                    T (&z)[KT]) const {
    T max = z[0];
#pragma unroll
    for (int k = 1; k < KT; ++k) max = fmax(max, z[k]);
    max = group_max(max, groups);
    const int target = label - fragment.class0;
    T rest = 0, gap = 0, weighted = 0;
    if (c.label_smoothing != T(0)) {
#pragma unroll
      for (int k = 0; k < KT; ++k) {
        if (fragment.class0 + k < p.classes) weighted += class_weight(fragment.class0 + k) * (max - z[k]);
      }
      weighted = group_sum(weighted, groups);
    }
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      z[k] -= max;
      if (k == target) gap = -z[k];
      z[k] = exp_nonpositive(z[k]);
      if (k != target) rest += z[k];
    }
    rest = group_sum(rest, groups);
    gap = group_sum(gap, groups);
    if (label < 0) return {};
    return pixel_loss(p, c, label, {max, rest, gap, weighted}, grad_loss);
  }

  // g0 += (1 - f) dl/dz, g1 += f dl/dz, with e = exp(z - max)
  __device__ __forceinline__ void add_gradient(const Fragment<T>& fragment, int label, const PixelCoefs<T>& d, T f,
                                               T (&e)[KT], T (&g0)[KT], T (&g1)[KT]) const {
    if (d.smooth != T(0)) {
#pragma unroll
      for (int k = 0; k < KT; ++k) {
        if (fragment.class0 + k >= p.classes) continue;
        const T v = d.smooth * (d.ratio * e[k] - class_weight(fragment.class0 + k));
        g0[k] += (T(1) - f) * v;
        if (f != T(0)) g1[k] += f * v;
      }
    }
    const int target = label - fragment.class0;
    const T upper = (T(1) - f) * d.scale, lower = f * d.scale;
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      e[k] = k == target ? -d.rest : e[k];
      g0[k] += upper * e[k];
    }
    if (f == T(0)) return;
#pragma unroll
    for (int k = 0; k < KT; ++k) g1[k] += lower * e[k];
  }

  __device__ __forceinline__ void row(int groups, const Fragment<T>& fragment, const LabelRow<T>& at, const T (&z0)[KT],
                                      const T (&z1)[KT], T (&g0)[KT], T (&g1)[KT]) {
    const int64_t image = at.image;
    const int y = at.y, label = at.label;
    const bool owned = at.owned;
    const T f = at.fraction;
    const auto pixel = [&] { return (image * p.y.labels + opaque(y)) * p.x.labels + fragment.x; };
    if (p.argmax_map() == nullptr && __all_sync(kFullMask, label == kIgnored)) {  // ignored regions cost nothing
      if (owned && fragment.local == 0 && p.loss_map() != nullptr) p.loss_map()[pixel()] = p.ignored_loss;
      return;
    }
    T z[KT];
    blend(p.y, z0, z1, f, z);
    if (Grad && p.pixel_coefs != nullptr) {  // the statistics come from pixel_kernel
      if (label < 0) return;
      const PixelCoefs<T> d = p.pixel_coefs[pixel()];
#pragma unroll
      for (int k = 0; k < KT; ++k) z[k] = exp_nonpositive(z[k] - d.max);
      if (d.scale != T(0) || d.smooth != T(0)) add_gradient(fragment, label, d, f, z, g0, g1);
      return;
    }
    const int best = p.argmax_map() == nullptr ? 0 : argmax(fragment, groups, z);
    const T grad_loss = Grad ? p.grad_loss_at(image, 0, y, fragment.x) : T(1);
    const PixelLoss<T> v = normalize(fragment, groups, label, grad_loss, z);
    if (owned && fragment.local == 0) {
      if (p.argmax_map() != nullptr) p.argmax_map()[pixel()] = best;
      if (p.loss_map() != nullptr) p.loss_map()[pixel()] = map_value(label, v.takes_part, v.loss, p.ignored_loss);
      if (label == kOutOfRange) bad.add(label_at(p.target, image, y, fragment.x));
      if (label >= 0) accumulate(p, v, label, best, sums);
    }
    if (Grad && v.takes_part) add_gradient(fragment, label, v.coefs, f, z, g0, g1);
  }
};

// sigmoid_element for t = 1 (positive) or 0, in a third of the instructions: with y = x (1 - 2t),
//   v = sigmoid(y),  l = alpha_t v^g softplus(y),  dl/dy = alpha_t v^g (v + g (1 - v) softplus(y))
template <typename T>
__device__ __forceinline__ SigmoidElement<T> sigmoid_of_label(T x, bool positive, T gamma, T alpha) {
  const T y = positive ? -x : x, e = exp_nonpositive(-std::fabs(x)), inverse = reciprocal(T(1) + e);
  const bool up = !(y < T(0));
  const T v = up ? inverse : e * inverse, rest = up ? e * inverse : inverse;
  const T softplus = (up ? y : T(0)) + std::log1p(e);
  T f = power(v, gamma);
  if (alpha >= T(0)) f *= positive ? alpha : T(1) - alpha;
  const T slope = f * (gamma == T(0) ? v : v + gamma * rest * softplus);
  return {f * softplus, positive ? -slope : slope};
}

template <typename T, int KT, bool Grad>
struct SigmoidForm {
  const CudaParams<T>& p;
  BadLabels& bad;
  Accumulator sums;
  bool dense;

  __device__ __forceinline__ SigmoidForm(const CudaParams<T>& params, BadLabels& bad)
      : p(params), bad(bad), dense(params.dense()) {}

  __device__ __forceinline__ Accumulator total() const { return sums; }

  __device__ __forceinline__ int fetch(const Fragment<T>& fragment, int y, int y_end) const {
    if (!fragment.active || y >= y_end) return kIgnored;
    if (!dense) return fetch_class(p, p.classes, fragment.label_offset + y * p.target.y);
    const T first = load_float<T>(p.target, fragment.label_offset + y * p.target.y);
    return first == static_cast<T>(p.ignore_index) ? kIgnored : 0;
  }

  __device__ __forceinline__ void row(int, const Fragment<T>& fragment, const LabelRow<T>& at, const T (&z0)[KT],
                                      const T (&z1)[KT], T (&g0)[KT], T (&g1)[KT]) {
    const int64_t image = at.image;
    const int y = at.y, label = at.label;
    const bool owned = at.owned;
    const T f = at.fraction;
    if (owned && fragment.class0 == 0) {
      sums.valid += label >= 0;
      if (label == kOutOfRange) bad.add(label_at(p.target, image, y, fragment.x));
    }
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      const int64_t cls = fragment.class0 + k;
      if (!fragment.active || cls >= p.classes) continue;
      SigmoidElement<T> element{};
      if (label >= 0) {
        const T x = blend(p.y, z0[k], z1[k], f);
        if (dense || sizeof(T) == sizeof(double)) {  // in fp64 one formula for all: two are as long as the rest
          const T t = dense ? load_float<T>(p.target, p.target.offset(image, cls, y, fragment.x)) : T(cls == label);
          element = sigmoid_element(x, t, p.gamma, p.alpha);
          if (!(t >= T(0) && t <= T(1))) element.loss = std::numeric_limits<T>::quiet_NaN();
        } else {
          element = sigmoid_of_label(x, cls == label, p.gamma, p.alpha);
        }
      }
      if (owned) {
        sums.loss += element.loss;
        if (p.loss_map() != nullptr) {
          const int64_t plane = image * p.classes + cls;
          p.loss_map()[(plane * p.y.labels + y) * p.x.labels + fragment.x] = map_value(label, true, element.loss, T(0));
        }
      }
      if (!Grad || label < 0) continue;
      // d(sum of loss grad_loss)/dz
      const T g = element.grad * p.grad_loss_at(image, cls, y, fragment.x);
      g0[k] += (T(1) - f) * g;
      if (f != T(0)) g1[k] += f * g;
    }
  }
};

}  // namespace metricseg::focal
