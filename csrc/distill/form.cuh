// What the walk over label rows (engines/resized/walk.cuh) does with a row in the distill family: the thread reads its
// classes of the other map, and a group of threads takes both softmaxes, the loss and the gradient.
#pragma once

#include "../engines/resized/walk.cuh"
#include "corners.cuh"
#include "terms.cuh"

namespace metricseg::distill {

using namespace resized;

template <typename T>
struct CudaParams : Params<T> {
  T inverse = 0;                   // 1 / temperature
  Partial* partial = nullptr;      // [blocks], or null
  PixelStats<T>* stats = nullptr;  // [B, H, W] of pixel_kernel, or null

  METRICSEG_HD T* loss_map() const { return this->loss.template as<T>(); }
  METRICSEG_HD T grad_loss_at(int64_t image, int64_t y, int64_t x) const {
    return this->grad_loss ? this->grad_loss.template as<T>()[this->grad_loss.offset(image, 0, y, x)] : T(1);
  }
  METRICSEG_HD int label_at(int64_t offset) const {
    return this->target && load_label(this->target, offset) == this->ignore_index ? kIgnored : 0;
  }
};

// Blocks on a multiprocessor, so that the register tile fits: 128, 168 or 255 registers a thread.
template <typename T>
constexpr int resident_blocks(int kt, bool grad) {
  return sizeof(T) == 8 || (grad && kt > 12) ? 2 : kt > (grad ? 4 : 12) ? 3 : 4;
}

template <typename T, int KT, bool Grad>
struct Form {
  const CudaParams<T>& p;
  double loss;
  int valid;
  int other_y, other_x;  // the cell of the other map that was read last

  __device__ __forceinline__ explicit Form(const CudaParams<T>& params)
      : p(params), loss(0), valid(0), other_y(0), other_x(0) {}

  __device__ __forceinline__ int fetch(const Fragment<T>& fragment, int y, int y_end) const {
    return fragment.active && y < y_end ? p.label_at(fragment.label_offset + y * p.target.y) : kIgnored;
  }

  __device__ __forceinline__ void row(int groups, const Fragment<T>& fragment, const LabelRow<T>& at, const T (&z0)[KT],
                                      const T (&z1)[KT], T (&g0)[KT], T (&g1)[KT]) {
    const bool ignored = __all_sync(kFullMask, at.label < 0), counts = at.owned && fragment.class0 == 0;
    const auto pixel = [&] { return (at.image * p.y.labels + opaque(at.y)) * p.x.labels + fragment.x; };
    if (ignored) {
      if (counts && p.loss_map() != nullptr) p.loss_map()[pixel()] = T(0);
      return;
    }
    T z[KT], y[KT];
    load_classes(p.other, at.image, between<T>(p.other_y, at.y, other_y), between<T>(p.other_x, fragment.x, other_x),
                 fragment.class0, p.classes, y);
    blend(p.y, z0, z1, at.fraction, z);
    PixelStats<T> stats{};
    T value = 0;
    switch (p.kind) {
      case Kind::kl:
        value = terms<Kind::kl>(groups, fragment, at, pixel(), stats, z, y);
        break;
      case Kind::reverse_kl:
        value = terms<Kind::reverse_kl>(groups, fragment, at, pixel(), stats, z, y);
        break;
      default:
        value = terms<Kind::js>(groups, fragment, at, pixel(), stats, z, y);
    }
    const bool takes_part = at.label >= 0;
    if (counts) {
      if (p.loss_map() != nullptr) p.loss_map()[pixel()] = takes_part ? value : T(0);
      if (takes_part) loss += static_cast<double>(value);
      valid += takes_part;
    }
    if (!Grad || !takes_part) return;
    const T upper = (T(1) - at.fraction) * stats.factor, lower = at.fraction * stats.factor;
#pragma unroll
    for (int k = 0; k < KT; ++k) g0[k] += upper * z[k];
    if (at.fraction == T(0)) return;
#pragma unroll
    for (int k = 0; k < KT; ++k) g1[k] += lower * z[k];
  }

  // The loss of the pixel, unless its statistics are those of pixel_kernel. z, y: logits in; z out: the gradient, but
  // for stats.factor.
  template <Kind kind>
  __device__ __forceinline__ T terms(int groups, const Fragment<T>& fragment, const LabelRow<T>& at, int64_t pixel,
                                     PixelStats<T>& stats, T (&z)[KT], T (&y)[KT]) const {
    const int left = opaque(p.classes - fragment.class0);  // so that no comparison is kept in a register
    const bool given = Grad && p.stats != nullptr;
    if (given) {
      if (at.label >= 0) stats = p.stats[pixel];
    } else {
      stats.max = stats.other_max = -std::numeric_limits<T>::infinity();
#pragma unroll
      for (int k = 0; k < KT; ++k) {
        if (k < left) stats.max = fmax(stats.max, z[k]);
        stats.other_max = fmax(stats.other_max, y[k]);
      }
      stats.max = group_max(stats.max, groups);
      stats.other_max = group_max(stats.other_max, groups);
    }
    PixelSums<T> sums;
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      add_exponentials(kind, stats, p.inverse, k < left, z[k], y[k], sums);
    }
    sums.sum = given ? stats.sum : group_sum(sums.sum, groups);
    sums.other_sum = given ? stats.other_sum : group_sum(sums.other_sum, groups);
    if constexpr (kind == Kind::js) {
#pragma unroll
      for (int k = 0; k < KT; ++k) add_logarithms(sums.sum, sums.other_sum, z[k], y[k], sums);
    }
    T value = 0;
    if (!given) {
      if constexpr (kind != Kind::kl) sums.own = group_sum(sums.own, groups);
      if constexpr (kind != Kind::reverse_kl) sums.other = group_sum(sums.other, groups);
      const T incoming = Grad ? p.grad_loss_at(at.image, at.y, fragment.x) : T(1);
      value = finish_pixel(kind, sums, p.temperature, incoming, stats);
    }
    if constexpr (Grad) to_gradient(kind, stats, z, y);
    return value;
  }
};

}  // namespace metricseg::distill
