// Errors of a block of pixels: put into bins (forward), or turned into the gradient of the logits by a table that has a
// number for each bin (backward). The entry of the target is moved out of the block, as focal does. A vector of errors
// all below 1 / N takes no scalar step. The walk over blocks: engines/resized/cpu_walk.h. Derivation:
// docs/kernels/lovasz.md.
#pragma once

#include "../engines/resized/cpu_softmax.h"
#include "../engines/resized/cpu_walk.h"
#include "cpu_params.h"

namespace metricseg::lovasz {
namespace METRICSEG_SIMD {

using namespace resized::METRICSEG_SIMD;

template <typename T>
struct Errors : BlockLoss<T> {
  using V = Lanes<T>;
  static constexpr int N = V::count;

  const CpuParams<T>& params;
  const int64_t K;
  T *const label, *const target_logit, *const rest, *const dot;  // [P, N], see take_targets
  T* const slopes;                                               // [K, P, N] dL/dp in backward
  Bin* const bins;
  double* const totals;
  BadLabels bad;

  Errors(const CpuParams<T>& params, T* memory, int64_t n, Bin* bins, double* totals)
      : BlockLoss<T>{memory, memory + n},
        params(params),
        K(params.classes),
        label(memory + 2 * n),
        target_logit(memory + 3 * n),
        rest(memory + 4 * n),
        dot(memory + 5 * n),
        slopes(memory + 6 * n),
        bins(bins),
        totals(totals) {}

  void run(const Block& block, T* z /* [K, P, N] */) final {
    const int64_t n = int64_t{block.vectors} * N;
    read_labels(params, K, block, label, &bad);
    take_targets(static_cast<const T*>(nullptr), block.vectors, z,
                 Entries{label, this->max, target_logit, this->factor});
    all_exponentials(K, block.vectors, z, this->max, rest);
    // target_logit becomes exp(z_t - max); factor is 1 / sum, or 0 without a label
    for (int64_t i = 0; i < n; i += N) {
      const V zero(T(0)), e = exp_below_zero(V::load(target_logit + i) - V::load(this->max + i));
      e.store(target_logit + i);
      select(V::load(label + i) >= zero, V(T(1)) / (V::load(rest + i) + e), zero).store(this->factor + i);
    }
    if (bins) {
      count_own(n);
      for (int64_t k = 0; k < K; ++k) {
        each_large(z + k * n, n, [&](int64_t, T p) { add(k, 0, p); });
      }
    } else {
      differentiate(params.per_image ? block.image : 0, n, z);
    }
  }

 private:
  struct Entries {
    const T *label, *max;
    T *target_logit, *weight;  // weight: not used
  };

  METRICSEG_HD int64_t place(T error) const {
    const T scaled = error * static_cast<T>(params.bins);
    return scaled < static_cast<T>(params.bins) ? static_cast<int64_t>(scaled) : params.bins - 1;  // NaN: the last
  }

  void add(int64_t k, int own, T error) const {
    const int64_t at = place(error);
    Bin& bin = bins[(k * 2 + own) * params.bins + at];
    bin.count += 1;
    const T rest = error * static_cast<T>(params.bins) - static_cast<T>(at);
    bin.rest += static_cast<int64_t>(rest * static_cast<T>(params.one) + T(0.5));
  }

  // The errors 1 - p of the pixels of a class.
  void count_own(int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      if (label[i] < T(0)) continue;
      totals[kValid] += 1;
      const T error = rest[i] * this->factor[i];
      if (error == error) {
        add(static_cast<int64_t>(label[i]), 1, error);
      } else {
        totals[kUndefined] = std::numeric_limits<double>::quiet_NaN();
      }
    }
  }

  // f(i, p) for errors of other classes from 1 / N on. They are listed first, without a branch for each.
  template <typename F>
  METRICSEG_HD void each_large(const T* exps, int64_t n, const F& f) const {
    const V zero(T(0)), one(T(1)), size(static_cast<T>(params.bins));
    int32_t large[resized::kMaxVectors * resized::kMaxLanes];
    int64_t count = 0;
    for (int64_t i = 0; i < n; i += N) {
      const V found = select(V::load(exps + i) * V::load(this->factor + i) * size >= one, one, zero);
      if (sum_of(found) == T(0)) continue;
      for (int lane = 0; lane < N; ++lane) {
        large[count] = static_cast<int32_t>(i + lane);
        count += found.v[lane] > T(0);
      }
    }
    for (int64_t j = 0; j < count; ++j) f(large[j], exps[large[j]] * this->factor[large[j]]);
  }

  // dz_k = p_k (dL/dp_k - sum_j p_j dL/dp_j), of the target e_t / sum (dL/dp_t rest - dot) / sum: no difference of
  // nearly equal numbers at p_t = 1
  void differentiate(int64_t image, int64_t n, T* z) const {
    const T* const table = params.table + image * params.image_bins();
    const V zero(T(0));
    for (int64_t i = 0; i < n; i += N) zero.store(dot + i);
    for (int64_t k = 0; k < K; ++k) {
      T *const exps = z + k * n, *const slope = slopes + k * n;
      for (int64_t i = 0; i < n; i += N) zero.store(slope + i);
      each_large(exps, n, [&](int64_t i, T p) {
        slope[i] = table[k * 2 * params.bins + place(p)];
        dot[i] += exps[i] * slope[i];
      });
    }
    for (int64_t i = 0; i < n; ++i) {  // target_logit becomes the target's gradient over factor, dot what all share
      const T e = target_logit[i], inverse = this->factor[i];
      T own = 0;
      if (label[i] >= T(0)) {
        own = -table[(static_cast<int64_t>(label[i]) * 2 + 1) * params.bins + place(rest[i] * inverse)];
      }
      target_logit[i] = e * inverse * (own * rest[i] - dot[i]);
      dot[i] = (dot[i] + e * own) * inverse;
    }
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t i = 0; i < n; i += N) {
        T* const e = z + k * n + i;
        (V::load(e) * (V::load(slopes + k * n + i) - V::load(dot + i))).store(e);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      if (label[i] >= T(0)) z[static_cast<int64_t>(label[i]) * n + i] = target_logit[i];
    }
  }
};

template <typename T>
inline void work(const CpuParams<T>& params, int64_t begin, int64_t end, T* scratch, Bin* bins, double* totals) {
  Errors<T> errors(params, scratch + walk_values(params), block_pixels(params), bins, totals);
  walk(params, params.slots, begin, end, scratch, errors);
  if (!totals) return;
  totals[kBad] = errors.bad.bad;
  totals[kBadLabel] = errors.bad.bad_label;
}

template <typename T>
constexpr Loops<T> loops{Lanes<T>::count, work<T>};

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::lovasz
