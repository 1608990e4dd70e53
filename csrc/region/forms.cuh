// What the walk over label rows (engines/resized/walk.cuh) does with a row, for each form of the region family: forward
// adds to I, P and Y of each class, backward turns probabilities into the gradient of the logits. Derivation:
// docs/kernels/region.md.
#pragma once

#include "form.cuh"

namespace metricseg::region {

// Labels and the softmax, with the pixel loss.
template <typename T, int KT, bool Grad>
struct LabelForm : Form<T, KT, Grad> {
  using Base = Form<T, KT, Grad>;
  using Base::p, Base::smem;

  SoftmaxParams<T> c;
  T loss_grad;

  __device__ __forceinline__ LabelForm(const CudaParams<T>& params, const LaunchConfig& config, BadLabels& bad)
      : Base(params, config, bad), c(softmax_params<T>(params)), loss_grad(0) {
    if (!p.pixel_loss) c.label_smoothing = T(0);
    if (Grad && p.pixel_loss) loss_grad = static_cast<T>(*p.grad_loss);
  }

  __device__ __forceinline__ int fetch(const Fragment<T>& fragment, int y, int y_end) const {
    return fragment.active && y < y_end ? fetch_label(p, fragment.label_offset + y * p.target.y) : kIgnored;
  }

  __device__ __forceinline__ bool smooth() const { return c.label_smoothing != T(0); }

  __device__ __forceinline__ SoftmaxPixel<T> pixel_loss(const PixelStats<T>& stats, T sum, int label) const {
    return softmax_pixel(sum, stats.rest, stats.gap, stats.weighted_gap, class_weight(p, label), c);
  }

  __device__ __forceinline__ void row(int groups, const Fragment<T>& fragment, const LabelRow<T>& at, const T (&z0)[KT],
                                      const T (&z1)[KT], T (&g0)[KT], T (&g1)[KT]) {
    if (this->count_pixel(fragment, at)) {
      const int target = at.label - fragment.class0;
      T e[KT];
      blend(p.y, z0, z1, at.fraction, e);
      PixelStats<T> stats = this->normalize(groups, fragment, at, target, smooth(), e);
      if constexpr (Grad) {
        if (p.stats == nullptr) stats.dot = group_sum(add_products(fragment, target, e), groups);
        if (at.label >= 0) add_gradient(fragment, at, stats, e, g0, g1);
      } else {
        if (at.label >= 0) add_sums(fragment, at.label, stats, e);
      }
    }
    this->end_row();
  }

  __device__ __forceinline__ void add_sums(const Fragment<T>& fragment, int label, const PixelStats<T>& stats,
                                           const T (&e)[KT]) {
    const int target = label - fragment.class0;
    const T target_exp = exp_nonpositive(-stats.gap), sum = stats.rest + target_exp, inverse = T(1) / sum;
#pragma unroll
    for (int k = 0; k < KT; ++k) this->mass[k] += e[k] * inverse;
    if (target >= 0 && target < KT) this->add_target(target, target_exp * inverse, T(1));
    if (p.pixel_loss && fragment.class0 == 0) this->loss += pixel_loss(stats, sum, label).loss;
  }

  // sum over k != t of e_k dL/dP_k
  __device__ __forceinline__ T add_products(const Fragment<T>& fragment, int target, const T (&e)[KT]) const {
    const T* const grads = smem.mass_grad() + opaque(fragment.local);  // not kept in registers
    T dot = 0;
#pragma unroll
    for (int k = 0; k < KT; k += 4) {
      const Quad<T> grad = quad(grads + k);
#pragma unroll
      for (int q = 0; q < 4; ++q) dot += k + q == target ? T(0) : e[k + q] * grad.v[q];
    }
    return dot;
  }

  // dL/dp_t = dL/dI_t + dL/dP_t
  __device__ __forceinline__ T target_grad(const Fragment<T>& fragment, const LabelRow<T>& at) const {
    const int place = at.label - fragment.class0 + fragment.local;
    if (place >= 0 && place < this->config.span) return smem.hit_grad()[place] + smem.mass_grad()[place];
    const double* grad = p.class_grad(at.image, at.label);  // of another block's span
    return static_cast<T>(grad[0]) + static_cast<T>(grad[1]);
  }

  // g0 += (1 - f) dL/dz, g1 += f dL/dz, with s the sum of all exponentials and a, b times dL/d(pixel loss):
  //   dL/dz_k = e_k / s (dL/dP_k - (dot + e_t dL/dp_t) / s + a + b W) - b w_k
  //   dL/dz_t = (e_t / s (dL/dp_t rest - dot) - a rest + b W e_t) / s - b w_t
  __device__ __forceinline__ void add_gradient(const Fragment<T>& fragment, const LabelRow<T>& at,
                                               const PixelStats<T>& stats, T (&e)[KT], T (&g0)[KT], T (&g1)[KT]) const {
    const T target_exp = exp_nonpositive(-stats.gap), sum = stats.rest + target_exp, inverse = T(1) / sum;
    const T grad = target_grad(fragment, at), f = at.fraction;
    T shift = -(stats.dot + target_exp * grad) * inverse;
    T value = target_exp * inverse * (grad * stats.rest - stats.dot);
    if (p.pixel_loss) {
      const SoftmaxPixel<T> pixel = pixel_loss(stats, sum, at.label);
      const T a = loss_grad * pixel.a;
      value -= a * stats.rest;
      shift += a;
      if (smooth()) {
        const T b = loss_grad * pixel.b, bw = b * c.weight_total;
        value += bw * target_exp;
        shift += bw;
        subtract_weights(fragment, b, f, g0, g1);
      }
    }
    const int target = at.label - fragment.class0;
    const T* const grads = smem.mass_grad() + opaque(fragment.local);
    const T upper = (T(1) - f) * inverse, lower = f * inverse;
#pragma unroll
    for (int k = 0; k < KT; k += 4) {
      const Quad<T> mass_grad = quad(grads + k);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        e[k + q] = k + q == target ? value : e[k + q] * (mass_grad.v[q] + shift);
        g0[k + q] += upper * e[k + q];
      }
    }
    if (f == T(0)) return;
#pragma unroll
    for (int k = 0; k < KT; ++k) g1[k] += lower * e[k];
  }

  __device__ __forceinline__ void subtract_weights(const Fragment<T>& fragment, T b, T f, T (&g0)[KT],
                                                   T (&g1)[KT]) const {
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      if (fragment.class0 + k >= p.classes) continue;
      const T v = b * class_weight(p, fragment.class0 + k);
      g0[k] -= (T(1) - f) * v;
      if (f != T(0)) g1[k] -= f * v;
    }
  }
};

// Soft targets and the softmax.
template <typename T, int KT, bool Grad>
struct SoftForm : Form<T, KT, Grad> {
  using Base = Form<T, KT, Grad>;
  using Base::Base, Base::p, Base::smem;

  __device__ __forceinline__ int fetch(const Fragment<T>& fragment, int y, int y_end) const {
    return fragment.active && y < y_end ? fetch_soft(p, fragment.label_offset + y * p.target.y) : kIgnored;
  }

  __device__ __forceinline__ void row(int groups, const Fragment<T>& fragment, const LabelRow<T>& at, const T (&z0)[KT],
                                      const T (&z1)[KT], T (&g0)[KT], T (&g1)[KT]) {
    if (this->count_pixel(fragment, at)) {
      T e[KT], y[KT];
      blend(p.y, z0, z1, at.fraction, e);
#pragma unroll
      for (int k = 0; k < KT; ++k) {
        const int cls = fragment.class0 + k;
        y[k] = at.label >= 0 && cls < p.classes ? soft_target(p, at.image, cls, at.y, fragment.x) : T(0);
      }
      PixelStats<T> stats = this->normalize(groups, fragment, at, -1, false, e);
      const T inverse = T(1) / stats.rest;
      if constexpr (Grad) {
        add_gradient(groups, fragment, at, stats, inverse, e, y, g0, g1);
      } else if (at.label >= 0) {
#pragma unroll
        for (int k = 0; k < KT; ++k) {
          this->mass[k] += e[k] * inverse;
          this->add_target(k, e[k] * inverse * y[k], y[k]);
        }
      }
    }
    this->end_row();
  }

  // dL/dz_k = q_k (c_k - sum_j q_j c_j),  c_k = dL/dI_k y_k + dL/dP_k;  y -> c
  __device__ __forceinline__ void add_gradient(int groups, const Fragment<T>& fragment, const LabelRow<T>& at,
                                               PixelStats<T>& stats, T inverse, const T (&e)[KT], T (&y)[KT],
                                               T (&g0)[KT], T (&g1)[KT]) const {
    const int local = opaque(fragment.local);
    T dot = 0;
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      y[k] = smem.hit_grad()[local + k] * y[k] + smem.mass_grad()[local + k];
      dot += e[k] * y[k];
    }
    dot = p.stats == nullptr ? group_sum(dot, groups) : stats.dot;
    if (at.label < 0) return;
    const T f = at.fraction, mean = dot * inverse;
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      const T v = e[k] * inverse * (y[k] - mean);
      g0[k] += (T(1) - f) * v;
      if (f != T(0)) g1[k] += f * v;
    }
  }
};

// The sigmoid, of labels or soft targets.
template <typename T, int KT, bool Grad>
struct SigmoidForm : Form<T, KT, Grad> {
  using Base = Form<T, KT, Grad>;
  using Base::Base, Base::p, Base::smem;

  __device__ __forceinline__ int fetch(const Fragment<T>& fragment, int y, int y_end) const {
    if (!fragment.active || y >= y_end) return kIgnored;
    const int64_t offset = fragment.label_offset + y * p.target.y;
    return p.dense() ? fetch_soft(p, offset) : fetch_label(p, offset);
  }

  __device__ __forceinline__ void row(int, const Fragment<T>& fragment, const LabelRow<T>& at, const T (&z0)[KT],
                                      const T (&z1)[KT], T (&g0)[KT], T (&g1)[KT]) {
    if (this->count_pixel(fragment, at) && at.label >= 0) {
      const bool dense = p.dense();
      const int target = dense ? -1 : at.label - (p.classes == 1) - fragment.class0, local = opaque(fragment.local);
      T hit = 0;
#pragma unroll
      for (int k = 0; k < KT; ++k) {
        const int cls = fragment.class0 + k;
        if (cls >= p.classes) continue;
        const T y = dense ? soft_target(p, at.image, cls, at.y, fragment.x) : T(k == target);
        const T x = blend(p.y, z0[k], z1[k], at.fraction);
        const T e = exp_nonpositive(-std::fabs(x)), inverse = T(1) / (T(1) + e);
        const T s = x < T(0) ? e * inverse : inverse, other = x < T(0) ? inverse : e * inverse;
        if constexpr (Grad) {
          // dL/dz_k = s (1 - s) (dL/dI_k y_k + dL/dP_k)
          const T v = s * other * (smem.hit_grad()[local + k] * y + smem.mass_grad()[local + k]);
          g0[k] += (T(1) - at.fraction) * v;
          if (at.fraction != T(0)) g1[k] += at.fraction * v;
        } else {
          this->mass[k] += s;
          if (dense) this->add_target(k, s * y, y);
          if (k == target) hit = s;
        }
      }
      if (!Grad && target >= 0 && target < KT && fragment.class0 + target < p.classes) {
        this->add_target(target, hit, T(1));
      }
    }
    this->end_row();
  }
};

}  // namespace metricseg::region
