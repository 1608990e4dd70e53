// Losses on a block of pixels: logits in, their gradient out, in the same memory. One vector holds pixels of one class,
// and the K vectors of the same pixels are P vectors apart. Steps of the softmax: engines/resized/cpu_softmax.h.
// Derivation: docs/kernels/focal.md.
#pragma once

#include "../engines/resized/cpu_softmax.h"
#include "../engines/resized/cpu_walk.h"
#include "cpu_params.h"

namespace metricseg::focal {
namespace METRICSEG_SIMD {

using namespace resized::METRICSEG_SIMD;

// Running sums of a unit of work, lane by lane.
template <typename T>
struct Accumulator : BadLabels {
  static constexpr int N = Lanes<T>::count;
  double loss[N] = {}, valid[N] = {}, weight[N] = {}, correct[N] = {};

  Partial total() const {
    Partial p{0, 0, 0, 0, bad, bad_label};
    for (int i = 0; i < N; ++i) {
      p.loss += loss[i];
      p.valid += valid[i];
      p.weight += weight[i];
      p.correct += correct[i];
    }
    return p;
  }
};

// Per pixel, [P, N] each.
template <typename T>
struct Pixels {
  T* max;           // of the logits
  T* label;         // class, kIgnored or kOutOfRange
  T* scale;         // incoming gradient
  T* weight;        // of the label's class
  T* target_logit;  // later its replacement
  T* rest;          // sum of exp(z_k - max) over the other classes
  T* gap;           // sum_k w_k (max - z_k), with label smoothing
  T* best;          // argmax, or null
  T* factor;        // gradient = factor * (what the block holds)
  T* offset;        // sum of w_k's coefficient, with label smoothing
  T* loss;

  Pixels(T* memory, int64_t n)
      : max(memory),
        label(memory + n),
        scale(memory + 2 * n),
        weight(memory + 3 * n),
        target_logit(memory + 4 * n),
        rest(memory + 5 * n),
        gap(memory + 6 * n),
        best(memory + 7 * n),
        factor(memory + 8 * n),
        offset(memory + 9 * n),
        loss(memory + 10 * n) {}
};

template <typename T>
struct Softmax {
  using V = Lanes<T>;
  static constexpr int N = V::count;

  static void run(const CpuParams<T>& params, const Block& block, T* z /* [K, P, N] */, const Pixels<T>& px,
                  Accumulator<T>& sums) {
    const int P = block.vectors;
    read_labels(params, params.classes, block, px.label, &sums);
    if (params.grad_loss) gather(params.grad_loss, block, 0, T(0), px.scale);
    if (params.argmax) find_best(params, P, z, px.best);
    if (params.softmax.label_smoothing != T(0)) {
      weighted_gaps(params.classes, params.weight, P, z, px.max, px.gap);
    }
    take_targets(params.weight, P, z, px);
    all_exponentials(params.classes, P, z, px.max, px.rest);
    for (int p = 0; p < P; ++p) formulas(params, block.record, p * N, px, sums);
    if (block.record) {
      if (params.loss) scatter<T, T>(params.loss, block, 0, px.loss);
      if (params.argmax) scatter<T, int32_t>(params.argmax, block, 0, px.best);
    }
    if (params.grad) finish_gradient(params, P, z, px);
  }

  // The first of the largest logits; NaN is larger than all.
  static void find_best(const CpuParams<T>& params, int P, const T* z, T* best) {
    for (int p = 0; p < P; ++p) {
      V top = V::load(z + p * N), at(T(0));
      for (int64_t k = 1; k < params.classes; ++k) {
        const V value = V::load(z + (k * P + p) * N);
        const Mask<T> better = (value > top) | ((value != value) & (top == top));
        top = select(better, value, top);
        at = select(better, V(static_cast<T>(k)), at);
      }
      at.store(best + p * N);
    }
  }

  METRICSEG_HD static void formulas(const CpuParams<T>& params, bool record, int64_t i, const Pixels<T>& px,
                                    Accumulator<T>& sums) {
    const V zero(T(0)), one(T(1));
    const V label = V::load(px.label + i), weight = V::load(px.weight + i), rest = V::load(px.rest + i);
    const V gap = V::load(px.max + i) - V::load(px.target_logit + i);
    const V target_exp = exp_below_zero(-gap);  // exp(z_t - max)
    const V sum = rest + target_exp;
    const V weighted_gap = params.softmax.label_smoothing != T(0) ? V::load(px.gap + i) : zero;
    const SoftmaxPixel<V> pixel = softmax_pixel(sum, rest, gap, weighted_gap, weight, params.softmax);
    Mask<T> valid = label >= zero;
    if (params.keep_above) valid = valid & ((pixel.nll > V(*params.keep_above)) | (pixel.nll != pixel.nll));
    if (record) {
      const V loss = select(valid, pixel.loss, V(params.ignored_loss));
      const V shown = select(label == V(T(kOutOfRange)), V(std::numeric_limits<T>::quiet_NaN()), loss);
      shown.store(px.loss + i);
      add_lanes(shown, sums.loss);
      add_lanes(select(valid, one, zero), sums.valid);
      add_lanes(select(valid, weight, zero), sums.weight);
      if (params.argmax) {
        add_lanes(select(valid & (V::load(px.best + i) == label), one, zero), sums.correct);
      }
    }
    if (!params.grad) return;
    const V scale = select(valid, params.grad_loss ? V::load(px.scale + i) : V(params.grad_scale), zero);
    if (params.softmax.label_smoothing == T(0)) {
      // a q_k scale = factor e_k, and for the target  -a u scale = factor (-rest)
      (select(valid, pixel.a, zero) * (scale / sum)).store(px.factor + i);
      (-rest).store(px.target_logit + i);
      return;
    }
    // (a q_k + b (W q_k - w_k)) scale = factor e_k - offset w_k, and for the target
    // (-a rest / s + b (W exp(z_t - max) / s - w_t)) scale
    const V a = select(valid, pixel.a, zero) * scale, b = select(valid, pixel.b, zero) * scale;
    const V bw = b * V(params.softmax.weight_total);
    ((a + bw) / sum).store(px.factor + i);
    b.store(px.offset + i);
    ((bw * target_exp - a * rest) / sum - b * weight).store(px.target_logit + i);
  }

  // Leaves the gradient as factor * z.
  static void finish_gradient(const CpuParams<T>& params, int P, T* z, const Pixels<T>& px) {
    const int64_t n = int64_t{P} * N;
    if (params.softmax.label_smoothing != T(0)) {
      for (int64_t k = 0; k < params.classes; ++k) {
        const V weight(params.weight ? params.weight[k] : T(1));
        for (int64_t i = 0; i < n; i += N) {
          T* e = z + k * n + i;
          (V::load(px.factor + i) * V::load(e) - V::load(px.offset + i) * weight).store(e);
        }
      }
      for (int64_t i = 0; i < n; ++i) px.factor[i] = T(1);
    }
    for (int64_t i = 0; i < n; ++i) {
      if (px.label[i] >= T(0)) z[static_cast<int64_t>(px.label[i]) * n + i] = px.target_logit[i];
    }
  }
};

template <typename T>
struct Sigmoid {
  using V = Lanes<T>;
  static constexpr int N = V::count;

  static void run(const CpuParams<T>& params, const Block& block, T* z /* [K, P, N] */, const Pixels<T>& px,
                  Accumulator<T>& sums) {
    const int64_t n = int64_t{block.vectors} * N;
    find_pixels(params, block, px, sums);
    const bool map = static_cast<bool>(params.grad_loss);
    for (int64_t k = 0; k < params.classes; ++k) {
      if (params.dense()) gather(params.target, block, k, T(0), px.target_logit);
      if (map) gather(params.grad_loss, block, k, T(0), px.scale);
      for (int64_t i = 0; i < n; i += N) {
        elements(params, block.record, V(static_cast<T>(k)), i, z + k * n + i, px, sums);
        if (map) (V::load(z + k * n + i) * V::load(px.scale + i)).store(z + k * n + i);
      }
      if (params.loss && block.record) scatter<T, T>(params.loss, block, k, px.loss);
    }
  }

  // Labels and validity; a pixel of a dense target is ignored if its first channel is ignore_index.
  static void find_pixels(const CpuParams<T>& params, const Block& block, const Pixels<T>& px, Accumulator<T>& sums) {
    const V zero(T(0)), one(T(1));
    if (params.dense()) {
      const T ignored = static_cast<T>(params.ignore_index);
      gather(params.target, block, 0, T(0), px.target_logit);
      for (int64_t i = 0; i < int64_t{block.vectors} * N; ++i) {
        px.label[i] = block.x[i / N][i % N] < 0 || px.target_logit[i] == ignored ? T(kIgnored) : T(0);
      }
    } else {
      read_labels(params, params.classes, block, px.label, &sums);
    }
    for (int64_t i = 0; i < int64_t{block.vectors} * N; i += N) {
      const V valid = select(V::load(px.label + i) >= zero, one, zero);
      (valid * V(params.grad_loss ? T(1) : params.grad_scale)).store(px.factor + i);
      if (block.record) add_lanes(valid, sums.valid);
    }
  }

  METRICSEG_HD static void elements(const CpuParams<T>& params, bool record, V k, int64_t i, T* z, const Pixels<T>& px,
                                    Accumulator<T>& sums) {
    const V zero(T(0)), one(T(1));
    const V label = V::load(px.label + i);
    const V t = params.dense() ? V::load(px.target_logit + i) : select(label == k, one, zero);
    const SigmoidElement<V> element = sigmoid_element(V::load(z), t, params.gamma, params.alpha);
    const Mask<T> valid = label >= zero;
    select(valid, element.grad, zero).store(z);
    if (!record) return;
    const V loss = select(valid, element.loss, zero);
    const Mask<T> bad = params.dense() ? valid & ((t < zero) | (t > one) | (t != t)) : label == V(T(kOutOfRange));
    const V shown = select(bad, V(std::numeric_limits<T>::quiet_NaN()), loss);
    shown.store(px.loss + i);
    add_lanes(shown, sums.loss);
  }
};

template <typename T, template <typename> class Form>
struct Loss final : BlockLoss<T> {
  const CpuParams<T>& params;
  const Pixels<T> px;
  Accumulator<T> sums;

  Loss(const CpuParams<T>& params, const Pixels<T>& px) : BlockLoss<T>{px.max, px.factor}, params(params), px(px) {}

  void begin(int64_t) override { sums = Accumulator<T>(); }
  void run(const Block& block, T* z) override { Form<T>::run(params, block, z, px, sums); }
  void end(int64_t unit) override { params.partials[unit] = sums.total(); }
};

template <typename T, template <typename> class Form>
inline void work(const CpuParams<T>& params, int64_t begin, int64_t end, T* scratch) {
  Loss<T, Form> loss(params, Pixels<T>(scratch + walk_values(params), block_pixels(params)));
  walk(params, params.slots, begin, end, scratch, loss);
}

template <typename T>
constexpr Loops<T> loops{Lanes<T>::count, work<T, Softmax>, work<T, Sigmoid>};

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::focal
