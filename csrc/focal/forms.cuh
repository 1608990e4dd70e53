// The softmax form and the sigmoid form on a label row: the softmax couples the classes of a pixel, the sigmoid does
// not. Neither owns memory; losses and counts accumulate in registers, in double if they are summed.
#pragma once

#include "math.h"
#include "walk.cuh"

namespace metricseg::focal {

constexpr int kNoLabel = -1;   // ignored, or no pixel at all
constexpr int kBadLabel = -2;  // out of range

struct Sums {
  double loss = 0, weight = 0;
  int valid = 0, correct = 0;
};

// Of a block, in shared memory: rare, and integer, so that atomics give the same bits in any order.
struct BadLabels {
  int count;
  long long worst;  // the largest

  __device__ __forceinline__ void add(long long label) {
    atomicAdd(&count, 1);
    atomicMax(&worst, label);
  }
};

template <typename T>
__device__ __forceinline__ int classify(const Problem<T>& p, int64_t label) {
  if (label == p.ignore_index) return kNoLabel;
  return static_cast<uint64_t>(label) < static_cast<uint64_t>(p.classes) ? static_cast<int>(label) : kBadLabel;
}

template <typename T>
__device__ __forceinline__ int64_t label_at(const Problem<T>& p, int64_t image, int64_t y, int64_t x) {
  return load_label(p.target, static_cast<Scalar>(p.target_type), p.target_stride.at(image, 0, y, x));
}

template <typename T>
__device__ __forceinline__ int fetch_label(const Problem<T>& p, int64_t image, int64_t y, int64_t x) {
  return classify(p, label_at(p, image, y, x));
}

template <typename T>
__device__ __forceinline__ int fetch_label(const Problem<T>& p, const Lane<T>& lane, unsigned y) {
  return classify(p, load_label(p.target, static_cast<Scalar>(p.target_type), lane.target + y * p.target_stride.y));
}

// W = sum_k w_k, the same in every thread of the block; only label smoothing needs it.
template <typename T>
__device__ __forceinline__ T total_weight(const Problem<T>& p) {
  if (p.smoothing == T(0) || p.weight == nullptr) return static_cast<T>(p.classes);
  T sum = 0;
  for (int k = threadIdx.x % kWarp; k < p.classes; k += kWarp) sum += p.weight[k];
  return group_sum(sum, kWarp);
}

// Loss and gradient coefficients of one pixel.
template <typename T>
struct Verdict {
  bool takes_part;
  T loss;
  PixelGradient<T> gradient;
};

// max, rest, gap = max - z_t and weighted = sum_k w_k (max - z_k) describe the pixel's softmax.
template <typename T>
__device__ __forceinline__ Verdict<T> judge(const Problem<T>& p, const SoftmaxParams<T>& c, int label, T max, T rest,
                                            T gap, T weighted, T grad_loss) {
  const T sum = rest + exp_nonpositive(-gap), inverse = T(1) / sum;
  const T weight = p.weight == nullptr ? T(1) : p.weight[label];
  const SoftmaxPixel<T> pixel = softmax_pixel(sum, rest, gap, weighted, weight, c);
  Verdict<T> v;
  v.takes_part = p.keep_above == nullptr || !(pixel.nll <= *p.keep_above);  // NaN takes part
  v.loss = pixel.loss;
  v.gradient = {max, rest, grad_loss * pixel.a * inverse, grad_loss * pixel.b, c.weight_total * inverse};
  return v;
}

template <typename T>
__device__ __forceinline__ void tell(const Problem<T>& p, const Verdict<T>& v, int label, int best, Sums& sums) {
  if (!v.takes_part) return;
  sums.loss += v.loss;
  if (p.weight != nullptr) sums.weight += p.weight[label];  // see with_weight
  ++sums.valid;
  sums.correct += p.argmax != nullptr && best == label;
}

// Without class weights each pixel weighs 1: their sum is known at the end, and costs no double per pixel before.
template <typename T>
__device__ __forceinline__ Sums with_weight(const Problem<T>& p, Sums sums) {
  if (p.weight == nullptr) sums.weight = sums.valid;
  return sums;
}

template <typename T>
__device__ __forceinline__ T map_value(int label, bool takes_part, T loss) {
  if (label == kBadLabel) return std::numeric_limits<T>::quiet_NaN();
  return takes_part ? loss : T(0);
}

template <typename T, int KT, bool Grad>
struct SoftmaxForm {
  const Problem<T>& p;
  BadLabels& bad;
  SoftmaxParams<T> c;
  Sums sums;

  __device__ __forceinline__ SoftmaxForm(const Problem<T>& problem, BadLabels& bad) : p(problem), bad(bad) {
    c = {p.gamma, p.smoothing, p.smoothing / static_cast<T>(p.classes), total_weight(p)};
  }

  __device__ __forceinline__ int fetch(const Lane<T>& lane, int y, int y_end) const {
    return lane.active && y < y_end ? fetch_label(p, lane, y) : kNoLabel;
  }

  __device__ __forceinline__ Sums total() const { return with_weight(p, sums); }

  __device__ __forceinline__ T class_weight(int k) const { return p.weight == nullptr ? T(1) : p.weight[k]; }

  // Lowest class of the largest logit; NaN counts as largest, as in torch.argmax.
  __device__ __forceinline__ int argmax(const Lane<T>& lane, int groups, const T (&z)[KT]) const {
    T best = z[0];
    int at = lane.class0;
#pragma unroll
    for (int k = 1; k < KT; ++k) {
      if (lane.class0 + k < p.classes && (z[k] > best || (z[k] != z[k] && best == best))) {
        best = z[k];
        at = lane.class0 + k;
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

  // z -> exp(z - max); returns the pixel's verdict
  __device__ __forceinline__ Verdict<T> normalise(const Lane<T>& lane, int groups, int label, T grad_loss,
                                                  T (&z)[KT]) const {
    T max = z[0];
#pragma unroll
    for (int k = 1; k < KT; ++k) max = fmax(max, z[k]);
    max = group_max(max, groups);
    const int target = label - lane.class0;
    T rest = 0, gap = 0, weighted = 0;
    if (c.smoothing != T(0)) {
#pragma unroll
      for (int k = 0; k < KT; ++k) {
        if (lane.class0 + k < p.classes) weighted += class_weight(lane.class0 + k) * (max - z[k]);
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
    return judge(p, c, label, max, rest, gap, weighted, grad_loss);
  }

  // g0 += (1 - f) dl/dz, g1 += f dl/dz, with e = exp(z - max)
  __device__ __forceinline__ void spread(const Lane<T>& lane, int label, const PixelGradient<T>& d, T f, T (&e)[KT],
                                         T (&g0)[KT], T (&g1)[KT]) const {
    if (d.smooth != T(0)) {
#pragma unroll
      for (int k = 0; k < KT; ++k) {
        if (lane.class0 + k >= p.classes) continue;
        const T v = d.smooth * (d.ratio * e[k] - class_weight(lane.class0 + k));
        g0[k] += (T(1) - f) * v;
        if (f != T(0)) g1[k] += f * v;
      }
    }
    const int target = label - lane.class0;
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

  __device__ __forceinline__ void row(int groups, int64_t image, const Lane<T>& lane, int y, bool owned, int label, T f,
                                      const T (&z0)[KT], const T (&z1)[KT], T (&g0)[KT], T (&g1)[KT]) {
    const auto pixel = [&] { return (image * p.y.labels + opaque(y)) * p.x.labels + lane.x; };
    if (p.argmax == nullptr && __all_sync(kFullMask, label == kNoLabel)) {  // ignored regions cost nothing
      if (owned && lane.local == 0 && p.loss_map != nullptr) p.loss_map[pixel()] = T(0);
      return;
    }
    T z[KT];
    blend(p.y, z0, z1, f, z);
    if (Grad && p.pixels != nullptr) {  // the statistics come from pixel_kernel
      if (label < 0) return;
      const PixelGradient<T> d = p.pixels[pixel()];
#pragma unroll
      for (int k = 0; k < KT; ++k) z[k] = exp_nonpositive(z[k] - d.max);
      if (d.scale != T(0) || d.smooth != T(0)) spread(lane, label, d, f, z, g0, g1);
      return;
    }
    const int best = p.argmax == nullptr ? 0 : argmax(lane, groups, z);
    const T grad_loss = Grad && p.grad_loss != nullptr ? p.grad_loss[p.grad_loss_stride.at(image, 0, y, lane.x)] : T(1);
    const Verdict<T> v = normalise(lane, groups, label, grad_loss, z);
    if (owned && lane.local == 0) {
      if (p.argmax != nullptr) p.argmax[pixel()] = best;
      if (p.loss_map != nullptr) p.loss_map[pixel()] = map_value(label, v.takes_part, v.loss);
      if (label == kBadLabel) bad.add(label_at(p, image, y, lane.x));
      if (label >= 0) tell(p, v, label, best, sums);
    }
    if (Grad && v.takes_part) spread(lane, label, v.gradient, f, z, g0, g1);
  }
};

template <typename T, int KT, bool Grad>
struct SigmoidForm {
  const Problem<T>& p;
  BadLabels& bad;
  Sums sums;
  bool dense;

  __device__ __forceinline__ SigmoidForm(const Problem<T>& problem, BadLabels& bad)
      : p(problem), bad(bad), dense(static_cast<Scalar>(problem.target_type) <= Scalar::kFloat16) {}

  __device__ __forceinline__ Sums total() const { return sums; }

  __device__ __forceinline__ int fetch(const Lane<T>& lane, int y, int y_end) const {
    if (!lane.active || y >= y_end) return kNoLabel;
    if (!dense) return fetch_label(p, lane, y);
    const T first = load_float<T>(p.target, static_cast<Scalar>(p.target_type), lane.target + y * p.target_stride.y);
    return first == static_cast<T>(p.ignore_index) ? kNoLabel : 0;
  }

  __device__ __forceinline__ void row(int, int64_t image, const Lane<T>& lane, int64_t y, bool owned, int label, T f,
                                      const T (&z0)[KT], const T (&z1)[KT], T (&g0)[KT], T (&g1)[KT]) {
    if (owned && lane.class0 == 0) {
      sums.valid += label >= 0;
      if (label == kBadLabel) bad.add(label_at(p, image, y, lane.x));
    }
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      const int64_t cls = lane.class0 + k;
      if (!lane.active || cls >= p.classes) continue;
      SigmoidElement<T> element{};
      if (label >= 0) {
        const T t = dense ? load_float<T>(p.target, static_cast<Scalar>(p.target_type),
                                          p.target_stride.at(image, cls, y, lane.x))
                          : T(cls == label);
        element = sigmoid_element(blend(p.y, z0[k], z1[k], f), t, p.gamma, p.alpha);
        if (!(t >= T(0) && t <= T(1))) element.loss = std::numeric_limits<T>::quiet_NaN();
      }
      if (owned) {
        sums.loss += element.loss;
        if (p.loss_map != nullptr) {
          const int64_t plane = image * p.classes + cls;
          p.loss_map[(plane * p.y.labels + y) * p.x.labels + lane.x] = map_value(label, true, element.loss);
        }
      }
      if (!Grad || label < 0) continue;
      // d(sum of loss grad_loss)/dz
      const T g = p.grad_loss == nullptr ? element.grad
                                         : element.grad * p.grad_loss[p.grad_loss_stride.at(image, cls, y, lane.x)];
      g0[k] += (T(1) - f) * g;
      if (f != T(0)) g1[k] += f * g;
    }
  }
};

}  // namespace metricseg::focal
