// Divergence of two softmaxes on a block of pixels: logits of the own map in, what times `factor` is their gradient out,
// in the same memory; those of the other map in a second block. One vector holds pixels of one class, and the K vectors
// of the same pixels are P vectors apart. The walk over blocks: engines/resized/cpu_walk.h, the other map: cpu_other.h.
// With a_k = (z_k - max z) / T, e_k = exp(a_k), s = sum_k e_k, p = e / s of the own map, b, f, t, q of the other:
//   kl          sum_k q_k (b_k - a_k) + log s - log t      T (p_k - q_k)
//   reverse_kl  sum_k p_k (a_k - b_k) + log t - log s      T p_k (a_k - b_k - sum_j p_j (a_j - b_j))
//   js          sum_k (u_k + v_k) / 2                      T / 2 (u_k - p_k sum_j u_j)
// times T^2, u_k = p_k log(p_k / m_k), v_k = q_k log(q_k / m_k), m = (p + q) / 2. Derivation: docs/kernels/distill.md.
#pragma once

#include "../engines/resized/cpu_walk.h"
#include "cpu_other.h"
#include "cpu_params.h"

namespace metricseg::distill {
namespace METRICSEG_SIMD {

using namespace resized::METRICSEG_SIMD;

// log(1 + u) for u in [-1, 1], with sum = 1 + u in more digits where u is near -1; 0 has a finite logarithm.
METRICSEG_HD Lanes<float> log_of_ratio(Lanes<float> u, Lanes<float> sum) {
  const Lanes<float> rounded = Lanes<float>(1.f) + u, rest = u - (rounded - Lanes<float>(1.f));
  const Mask<float> far = u < Lanes<float>(-0.5f);
  return log_of_sum(select(far, sum, rounded), select(far, Lanes<float>(0.f), rest));
}

METRICSEG_HD Lanes<double> log_of_ratio(Lanes<double> u, Lanes<double> sum) {
  return select(u < Lanes<double>(-0.5), log(sum), log1p(u));
}

template <typename T, Kind kind>
struct Divergence final : BlockLoss<T> {
  using V = Lanes<T>;
  static constexpr int N = V::count;

  const CpuParams<T>& params;
  const int64_t K;
  OtherMap<T> other;
  T* const y;                                                   // [K, P, N] logits of the other map
  T *const other_max, *const valid, *const scale, *const loss;  // [P, N]
  double losses[N], count[N];                                   // of a unit of work, lane by lane

  // memory: for n pixels of a block, then the block of the other map, then its rows
  Divergence(const CpuParams<T>& params, T* memory, int64_t n)
      : BlockLoss<T>{memory, memory + n},
        params(params),
        K(params.classes),
        other(params, memory + (kPixelArrays + K) * n),
        y(memory + kPixelArrays * n),
        other_max(memory + 2 * n),
        valid(other_max + n),
        scale(valid + n),
        loss(scale + n) {}

  void begin(int64_t) override {
    for (int i = 0; i < N; ++i) losses[i] = count[i] = 0;
  }

  void end(int64_t unit) override {
    Partial total{0, 0};
    for (int i = 0; i < N; ++i) {
      total.loss += losses[i];
      total.valid += count[i];
    }
    params.partials[unit] = total;
  }

  void run(const Block& block, T* z /* [K, P, N] */) override {
    const int P = block.vectors;
    find_valid(block);
    other.interpolate(block, y, other_max);
    if (params.grad_loss) gather(params.grad_loss, block, 0, T(0), scale);
    int p = 0;
    for (; p + 2 <= P; p += 2) pixels<2>(block.record, P, z, p);
    for (; p < P; ++p) pixels<1>(block.record, P, z, p);
    if (block.record && params.loss) scatter<T, T>(params.loss, block, 0, loss);
  }

 private:
  // 1 for pixels that take part, else 0
  void find_valid(const Block& block) {
    if (!params.target) {
      for (int64_t i = 0; i < int64_t{block.vectors} * N; ++i) valid[i] = block.x[i / N][i % N] < 0 ? T(0) : T(1);
      return;
    }
    dispatch_label(params.target.type, [&](auto zero) {
      for (int p = 0; p < block.vectors; ++p) {
        const auto* row = block.row<const decltype(zero)>(params.target, 0, p);
        for (int i = 0; i < N; ++i) {
          const int32_t x = block.x[p][i];
          const bool absent = x < 0 || static_cast<int64_t>(row[x * params.target.x]) == params.ignore_index;
          valid[p * N + i] = absent ? T(0) : T(1);
        }
      }
    });
  }

  METRICSEG_HD static V product(V probability, V difference) {  // 0 log 0 = 0
    const V zero(T(0));
    return select(probability == zero, zero, probability * difference);
  }

  // G vectors of pixels from p on.
  template <int G>
  METRICSEG_HD void pixels(bool record, int P, T* logits, int p) {
    T *const z = logits + p * N, *const other_z = y + p * N;
    const int64_t step = int64_t{P} * N;
    V m[G], n[G], s[G], t[G], sum[G];
    for (int g = 0; g < G; ++g) {
      m[g] = V::load(this->max + (p + g) * N);
      n[g] = V::load(other_max + (p + g) * N);
      s[g] = t[g] = sum[g] = V(T(0));
    }
    const V inverse(T(1) / params.temperature);
    for (int64_t k = 0; k < K; ++k) {
      for (int g = 0; g < G; ++g) {
        T *const at = z + k * step + g * N, *const other_at = other_z + k * step + g * N;
        const V a = (V::load(at) - m[g]) * inverse, b = (V::load(other_at) - n[g]) * inverse;
        const V e = exp_below_zero(a), f = exp_below_zero(b);
        s[g] = s[g] + e;
        t[g] = t[g] + f;
        if constexpr (kind == Kind::kl) sum[g] = sum[g] + product(f, b - a);
        if constexpr (kind == Kind::reverse_kl) sum[g] = sum[g] + product(e, a - b);
        e.store(at);
        (kind == Kind::reverse_kl ? a - b : f).store(other_at);
      }
    }
    for (int g = 0; g < G; ++g) {
      T *const at = z + g * N, *const other_at = other_z + g * N;
      V value;
      if constexpr (kind == Kind::kl) {
        value = sum[g] / t[g] + (log(s[g]) - log(t[g]));
        if (params.grad) finish_kl(step, at, other_at, s[g], t[g], (p + g) * N);
      } else if constexpr (kind == Kind::reverse_kl) {
        const V mean = sum[g] / s[g];
        value = mean + (log(t[g]) - log(s[g]));
        if (params.grad) finish_reverse_kl(step, at, other_at, s[g], mean, (p + g) * N);
      } else {
        value = jensen_shannon(step, at, other_at, s[g], t[g], (p + g) * N);
      }
      if (record) note(value, (p + g) * N);
    }
  }

  METRICSEG_HD void note(V value, int64_t i) {
    const V share = V::load(valid + i);
    const V shown = select(share == V(T(0)), V(T(0)), V(params.temperature * params.temperature) * value);
    shown.store(loss + i);
    add_lanes(shown, losses);
    add_lanes(share, count);
  }

  // What the gradient has for a factor beside `own`; 0 if the pixel takes no part.
  METRICSEG_HD void set_factor(V own, int64_t i) {
    const V zero(T(0)), incoming = params.grad_loss ? V::load(scale + i) : V(params.grad_scale);
    select(V::load(valid + i) == zero, zero, V(params.temperature) * incoming * own).store(this->factor + i);
  }

  // z = e - f s / t
  METRICSEG_HD void finish_kl(int64_t step, T* z, const T* f, V s, V t, int64_t i) {
    const V zero(T(0)), ratio = s / t;
    const Mask<T> absent = V::load(valid + i) == zero;
    for (int64_t k = 0; k < K; ++k, z += step, f += step) {
      select(absent, zero, V::load(z) - ratio * V::load(f)).store(z);
    }
    set_factor(V(T(1)) / s, i);
  }

  // z = e (a - b - mean)
  METRICSEG_HD void finish_reverse_kl(int64_t step, T* z, const T* difference, V s, V mean, int64_t i) {
    const V zero(T(0));
    const Mask<T> absent = V::load(valid + i) == zero;
    for (int64_t k = 0; k < K; ++k, z += step, difference += step) {
      select(absent, zero, product(V::load(z), V::load(difference) - mean)).store(z);
    }
    set_factor(V(T(1)) / s, i);
  }

  // z = u - p sum u
  METRICSEG_HD V jensen_shannon(int64_t step, T* z, T* f, V s, V t, int64_t i) {
    const V zero(T(0)), of_s = V(T(1)) / s, of_t = V(T(1)) / t;
    const Mask<T> absent = V::load(valid + i) == zero;
    V u_sum = zero, v_sum = zero;
    for (int64_t k = 0; k < K; ++k) {
      const V p = of_s * V::load(z + k * step), q = of_t * V::load(f + k * step), both = p + q;
      const V gap = (p - q) / both;
      const V u = product(p, log_of_ratio(gap, (p + p) / both));
      u_sum = u_sum + u;
      v_sum = v_sum + product(q, log_of_ratio(-gap, (q + q) / both));
      u.store(z + k * step);
      p.store(f + k * step);
    }
    if (params.grad) {
      for (int64_t k = 0; k < K; ++k) {
        T* const at = z + k * step;
        select(absent, zero, V::load(at) - V::load(f + k * step) * u_sum).store(at);
      }
      set_factor(V(T(0.5)), i);
    }
    return V(T(0.5)) * (u_sum + v_sum);
  }
};

template <typename T, Kind kind>
inline void work(const CpuParams<T>& params, int64_t begin, int64_t end, T* scratch) {
  Divergence<T, kind> divergence(params, scratch + walk_values(params), block_pixels(params));
  walk(params, params.slots, begin, end, scratch, divergence);
}

template <typename T>
constexpr Loops<T> loops{Lanes<T>::count, work<T, Kind::kl>, work<T, Kind::reverse_kl>, work<T, Kind::js>};

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::distill
