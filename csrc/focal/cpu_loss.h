// Losses on a block of pixels: logits in, their gradient out, in the same memory. One vector holds pixels of one class,
// and the K vectors of the same pixels are P vectors apart. No loop over classes branches or gathers. The entry of the
// target is removed before the exponentials are summed, so the sum is that of the others. It is put back such that its
// gradient is the same product as all others. Derivation: docs/kernels/focal.md.
#pragma once

#include "../common/simd/convert.h"
#include "../common/simd/lanes.h"
#include "cpu_params.h"

namespace metricseg::focal {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

// P vectors of pixels.
struct Block {
  int vectors;
  bool record;  // false if the rows of a neighbor are recomputed for their share of the gradient alone
  int64_t image, x0;
  int64_t y[kMaxVectors];
  const int32_t* x[kMaxVectors];  // [N] label columns counted from x0, -1 for an idle lane
};

// Running sums of a unit of work, lane by lane.
template <typename T>
struct Accumulator {
  static constexpr int N = Lanes<T>::count;
  double loss[N] = {}, valid[N] = {}, weight[N] = {}, correct[N] = {};
  double bad = 0, bad_label = 0;

  METRICSEG_HD static void add(Lanes<T> values, double* sums) {
    T lane[N];
    values.store(lane);
    for (int i = 0; i < N; ++i) sums[i] += static_cast<double>(lane[i]);
  }

  void note_bad(int64_t label) {
    const double value = static_cast<double>(label);
    bad_label = bad == 0 || value > bad_label ? value : bad_label;
    bad += 1;
  }

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

template <typename T, typename L>
inline void read_labels_as(const CpuParams<T>& params, const Block& block, T* label, Accumulator<T>& sums) {
  constexpr int N = Lanes<T>::count;
  const int64_t step = params.target.x;
  for (int p = 0; p < block.vectors; ++p) {
    const L* row = reinterpret_cast<const L*>(params.target.at(block.image, 0, block.y[p], block.x0));
    for (int i = 0; i < N; ++i) {
      const int32_t x = block.x[p][i];
      int64_t found = kIgnored;
      if (x >= 0) {
        const int64_t value = static_cast<int64_t>(row[x * step]);
        found = class_of(value, params.classes, params.ignore_index);
        if (found == kOutOfRange && block.record) sums.note_bad(value);
      }
      label[p * N + i] = static_cast<T>(found);
    }
  }
}

template <typename T>
inline void read_labels(const CpuParams<T>& params, const Block& block, T* label, Accumulator<T>& sums) {
  dispatch_label(params.target.type, [&](auto zero) { read_labels_as<T, decltype(zero)>(params, block, label, sums); });
}

// Values of a [B, (K,) H, W] map at the block's pixels; `idle` if a lane has none.
template <typename T>
inline void gather(const Map& map, const Block& block, int64_t channel, T idle, T* out) {
  constexpr int N = Lanes<T>::count;
  for (int p = 0; p < block.vectors; ++p) {
    const char* row = map.at(block.image, channel, block.y[p], block.x0);
    for (int i = 0; i < N; ++i) {
      const int32_t x = block.x[p][i];
      out[p * N + i] = x < 0 ? idle : read_one<T>(map.type, row + x * map.x * map.size);
    }
  }
}

template <typename T, typename S>
inline void scatter(const Map& map, const Block& block, int64_t channel, const T* in) {
  constexpr int N = Lanes<T>::count;
  for (int p = 0; p < block.vectors; ++p) {
    S* row = reinterpret_cast<S*>(map.at(block.image, channel, block.y[p], block.x0));
    for (int i = 0; i < N; ++i) {
      const int32_t x = block.x[p][i];
      if (x >= 0) row[x * map.x] = static_cast<S>(in[p * N + i]);
    }
  }
}

template <typename T>
struct Softmax {
  using V = Lanes<T>;
  static constexpr int N = V::count;

  static void run(const CpuParams<T>& params, const Block& block, T* z /* [K, P, N] */, const Pixels<T>& px,
                  Accumulator<T>& sums) {
    const int P = block.vectors;
    read_labels(params, block, px.label, sums);
    if (params.grad_loss) gather(params.grad_loss, block, 0, T(0), px.scale);
    if (params.argmax) find_best(params, P, z, px.best);
    if (params.softmax.label_smoothing != T(0)) weighted_gaps(params, P, z, px);
    take_targets(params, P, z, px);
    int p = 0;
    for (; p + 4 <= P; p += 4) exponentials<4>(params.classes, P, z + p * N, px.max + p * N, px.rest + p * N);
    for (; p < P; ++p) exponentials<1>(params.classes, P, z + p * N, px.max + p * N, px.rest + p * N);
    for (p = 0; p < P; ++p) formulas(params, block.record, p * N, px, sums);
    if (block.record) {
      if (params.loss) scatter<T, T>(params.loss, block, 0, px.loss);
      if (params.argmax) scatter<T, int32_t>(params.argmax, block, 0, px.best);
    }
    if (params.grad) finish_gradient(params, P, z, px);
  }

  // rest = sum_k exp(z_k - max), each exponential kept in place of its logit
  template <int G>
  METRICSEG_HD static void exponentials(int64_t classes, int P, T* z, const T* max, T* rest) {
    V m[G], sum[G];
    for (int g = 0; g < G; ++g) {
      m[g] = V::load(max + g * N);
      sum[g] = V(T(0));
    }
    for (int64_t k = 0; k < classes; ++k, z += P * N) {
      for (int g = 0; g < G; ++g) {
        const V e = exp_below_zero(V::load(z + g * N) - m[g]);
        e.store(z + g * N);
        sum[g] = sum[g] + e;
      }
    }
    for (int g = 0; g < G; ++g) sum[g].store(rest + g * N);
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

  static void weighted_gaps(const CpuParams<T>& params, int P, const T* z, const Pixels<T>& px) {
    for (int p = 0; p < P; ++p) {
      const V m = V::load(px.max + p * N);
      V sum(T(0));
      for (int64_t k = 0; k < params.classes; ++k) {
        sum = sum + V(params.weight ? params.weight[k] : T(1)) * (m - V::load(z + (k * P + p) * N));
      }
      sum.store(px.gap + p * N);
    }
  }

  static void take_targets(const CpuParams<T>& params, int P, T* z, const Pixels<T>& px) {
    const int64_t n = int64_t{P} * N;
    for (int64_t i = 0; i < n; ++i) {
      const bool labeled = px.label[i] >= T(0);
      if (labeled) {
        const int64_t t = static_cast<int64_t>(px.label[i]);
        px.target_logit[i] = z[t * n + i];
        px.weight[i] = params.weight ? params.weight[t] : T(1);
        z[t * n + i] = -std::numeric_limits<T>::infinity();
      } else {
        px.target_logit[i] = px.max[i];
        px.weight[i] = T(0);
      }
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
      Accumulator<T>::add(shown, sums.loss);
      Accumulator<T>::add(select(valid, one, zero), sums.valid);
      Accumulator<T>::add(select(valid, weight, zero), sums.weight);
      if (params.argmax) {
        Accumulator<T>::add(select(valid & (V::load(px.best + i) == label), one, zero), sums.correct);
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
      read_labels(params, block, px.label, sums);
    }
    for (int64_t i = 0; i < int64_t{block.vectors} * N; i += N) {
      const V valid = select(V::load(px.label + i) >= zero, one, zero);
      (valid * V(params.grad_loss ? T(1) : params.grad_scale)).store(px.factor + i);
      if (block.record) Accumulator<T>::add(valid, sums.valid);
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
    Accumulator<T>::add(shown, sums.loss);
  }
};

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::focal
