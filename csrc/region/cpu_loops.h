// Probabilities of a block of pixels: summed to I, P and Y of each class (forward), or turned into the gradient of the
// logits (backward). One vector holds pixels of one class, and the K vectors of the same pixels are P vectors apart.
// SoftmaxLabels also takes the pixel loss, and moves the entry of the target out of the block, as focal does; Elements
// takes soft targets and the sigmoid. The walk over blocks: engines/resized/cpu_walk.h. Derivation:
// docs/kernels/region.md.
#pragma once

#include "cpu_form.h"

namespace metricseg::region {
namespace METRICSEG_SIMD {

template <typename T>
struct SoftmaxLabels : Form<T> {
  using typename Form<T>::V;
  using Form<T>::N, Form<T>::K, Form<T>::params, Form<T>::px, Form<T>::sums, Form<T>::hit_grad, Form<T>::mass_grad;

  using Form<T>::Form;
  static constexpr bool kOfLabels = true;

  void run(const Block& block, T* z /* [K, P, N] */) final {
    const int P = block.vectors;
    const int64_t n = int64_t{P} * N;
    read_labels(params, K, block, px.label, &sums);
    if (params.pixel.label_smoothing != T(0)) weighted_gaps(K, params.weight, P, z, px.max, px.gap);
    take_targets(params.weight, P, z, px);
    if (!params.grad) {
      all_exponentials(K, P, z, px.max, px.rest);
      V extremes(T(0));  // NaN from an infinity or a NaN
      for (int64_t i = 0; i < n; i += N) extremes = extremes + probability(i);
      if (sum_of(extremes) == T(0)) {
        add_mass<true>(P, z);
      } else {
        add_mass<false>(P, z);
      }
      for (int64_t i = 0; i < n; i += N) add_hits(i);
    } else {
      this->choose_image(block.image);
      int p = 0;
      for (; p + 4 <= P; p += 4) weighed_exponentials<4>(P, z + p * N, p * N);
      for (; p < P; ++p) weighed_exponentials<1>(P, z + p * N, p * N);
      for (int64_t i = 0; i < n; ++i) {
        const int64_t t = static_cast<int64_t>(px.label[i]);
        px.target[i] = t < 0 ? T(0) : hit_grad[t] + mass_grad[t];
      }
      for (int64_t i = 0; i < n; i += N) coefficients(i);
      finish_gradient(n, z);
    }
  }

  struct Sum {
    V target_exp, rest, all;  // exp(z_t - max), those of the other classes, and both

    METRICSEG_HD Sum(const Pixels<T>& px, int64_t i)
        : target_exp(exp_below_zero(V::load(px.target_logit + i) - V::load(px.max + i))),
          rest(V::load(px.rest + i)),
          all(rest + target_exp) {}
  };

  METRICSEG_HD resized::SoftmaxPixel<V> pixel_loss(const Sum& sum, int64_t i) const {
    const V gap = V::load(px.max + i) - V::load(px.target_logit + i);
    const V weighted_gap = params.pixel.label_smoothing != T(0) ? V::load(px.gap + i) : V(T(0));
    return resized::softmax_pixel(sum.all, sum.rest, gap, weighted_gap, V::load(px.weight + i), params.pixel);
  }

  // factor = 1 / sum, and p_t as target; both 0 if the pixel has no label. 0 if the sum is finite.
  METRICSEG_HD V probability(int64_t i) {
    const Sum sum(px, i);
    const V inverse = V(T(1)) / sum.all;
    this->select_valid(inverse, i).store(px.factor + i);
    this->select_valid(sum.target_exp * inverse, i).store(px.target + i);
    if (params.pixel_loss) add_lanes(this->select_valid(pixel_loss(sum, i).loss, i), sums.loss);
    return sum.all - sum.all;
  }

  template <bool finite>
  METRICSEG_HD void add_mass(int P, const T* z) {
    int p = 0;
    for (; p + 8 <= P; p += 8) add_mass_of<8, finite>(P, z + p * N, px.factor + p * N);
    for (; p + 4 <= P; p += 4) add_mass_of<4, finite>(P, z + p * N, px.factor + p * N);
    for (; p < P; ++p) add_mass_of<1, finite>(P, z + p * N, px.factor + p * N);
  }

  // P_k of the pixels whose label is another class. finite: else an ignored pixel may hold a NaN.
  template <int G, bool finite>
  METRICSEG_HD void add_mass_of(int P, const T* z, const T* factors) {
    const V zero(T(0));
    V factor[G];
    for (int g = 0; g < G; ++g) factor[g] = V::load(factors + g * N);
    for (int64_t k = 0; k < K; ++k, z += P * N) {
      V sum = zero;
      for (int g = 0; g < G; ++g) {
        const V p = factor[g] * V::load(z + g * N);
        sum = sum + (finite ? p : select(factor[g] == zero, zero, p));
      }
      add_lanes(sum, sums.mass + k * N);
    }
  }

  // I and Y of N pixels; at once if those with a label have the same one
  METRICSEG_HD void add_hits(int64_t i) {
    const V zero(T(0)), one(T(1)), label = V::load(px.label + i);
    const Mask<T> valid = label >= zero;
    V largest = label;  // or 0, if there is none
    if constexpr (N > 8) largest = metricseg::METRICSEG_SIMD::max(largest, shift<8>(largest));
    if constexpr (N > 4) largest = metricseg::METRICSEG_SIMD::max(largest, shift<4>(largest));
    if constexpr (N > 2) largest = metricseg::METRICSEG_SIMD::max(largest, shift<2>(largest));
    const T found = metricseg::METRICSEG_SIMD::max(largest, shift<1>(largest)).first();
    if (sum_of(select(valid & (label != V(found)), one, zero)) == T(0)) {
      const int64_t at = static_cast<int64_t>(found) * N;
      add_lanes(V::load(px.target + i), sums.hits + at);
      add_lanes(select(valid, one, zero), sums.count + at);
      return;
    }
    for (int lane = 0; lane < N; ++lane) {
      if (px.label[i + lane] < T(0)) continue;
      const int64_t at = static_cast<int64_t>(px.label[i + lane]) * N + lane;
      sums.hits[at] += static_cast<double>(px.target[i + lane]);
      sums.count[at] += 1;
    }
  }

  // rest and dot = sum_k exp(z_k - max) dL/dP_k
  template <int G>
  METRICSEG_HD void weighed_exponentials(int P, T* z, int64_t at) const {
    V m[G], sum[G], dot[G];
    for (int g = 0; g < G; ++g) {
      m[g] = V::load(px.max + at + g * N);
      sum[g] = dot[g] = V(T(0));
    }
    for (int64_t k = 0; k < K; ++k, z += P * N) {
      const V grad(mass_grad[k]);
      for (int g = 0; g < G; ++g) {
        const V e = exp_below_zero(V::load(z + g * N) - m[g]);
        e.store(z + g * N);
        sum[g] = sum[g] + e;
        dot[g] = dot[g] + e * grad;
      }
    }
    for (int g = 0; g < G; ++g) {
      sum[g].store(px.rest + at + g * N);
      dot[g].store(px.dot + at + g * N);
    }
  }

  // dz_k = q_k (dL/dp_k - sum_j q_j dL/dp_j) + a (q_k - [k = t]) + b (W q_k - w_k)
  //      = factor e_k (dL/dP_k + shift) - offset w_k, and for the target
  //        factor (q_t (dL/dp_t rest - dot) - a rest + b W e_t) - offset w_t
  METRICSEG_HD void coefficients(int64_t i) {
    const V zero(T(0));
    const Sum sum(px, i);
    const V inverse = V(T(1)) / sum.all, dot = V::load(px.dot + i), grad = V::load(px.target + i);
    V shift = -(dot + sum.target_exp * grad) * inverse;
    V target = sum.target_exp * inverse * (grad * sum.rest - dot);
    V offset = zero;
    if (params.pixel_loss) {
      const auto pixel = pixel_loss(sum, i);
      const V scale(params.loss_grad);
      const V a = this->select_valid(pixel.a, i) * scale;
      target = target - a * sum.rest;
      shift = shift + a;
      if (params.pixel.label_smoothing != T(0)) {
        offset = this->select_valid(pixel.b, i) * scale;
        const V bw = offset * V(params.pixel.weight_total);
        target = target + bw * sum.target_exp;
        shift = shift + bw;
      }
    }
    const V factor = this->select_valid(inverse, i);
    shift.store(px.shift + i);
    offset.store(px.offset + i);
    factor.store(px.factor + i);
    if (params.pixel.label_smoothing != T(0)) target = factor * target - offset * V::load(px.weight + i);
    target.store(px.target_logit + i);
  }

  // Leaves the gradient as factor * z.
  void finish_gradient(int64_t n, T* z) {
    const bool smooth = params.pixel.label_smoothing != T(0);
    for (int64_t k = 0; k < K; ++k) {
      const V grad(mass_grad[k]), weight(params.weight ? params.weight[k] : T(1));
      for (int64_t i = 0; i < n; i += N) {
        T* e = z + k * n + i;
        V value = V::load(e) * (grad + V::load(px.shift + i));
        if (smooth) value = V::load(px.factor + i) * value - V::load(px.offset + i) * weight;
        value.store(e);
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      if (px.label[i] >= T(0)) z[static_cast<int64_t>(px.label[i]) * n + i] = px.target_logit[i];
      if (smooth) px.factor[i] = T(1);
    }
  }
};

// Soft targets, or labels with the sigmoid.
template <typename T, bool softmax>
struct Elements : Form<T> {
  using typename Form<T>::V;
  using Form<T>::N, Form<T>::K, Form<T>::params, Form<T>::px, Form<T>::sums, Form<T>::hit_grad, Form<T>::mass_grad;

  using Form<T>::Form;
  static constexpr bool kOfLabels = false;

  void run(const Block& block, T* z /* [K, P, N] */) final {
    const int P = block.vectors;
    const int64_t n = int64_t{P} * N;
    find_pixels(block, n);
    if constexpr (softmax) all_exponentials(K, P, z, px.max, px.rest);
    for (int64_t i = 0; i < n; i += N) {
      const V one(T(1)), scale = softmax ? one / V::load(px.rest + i) : one;
      this->select_valid(scale, i).store(px.factor + i);
      if (!params.grad) add_lanes(this->select_valid(one, i), sums.valid);
    }
    if (!params.grad) {
      for (int64_t k = 0; k < K; ++k) {
        find_targets(block, k, n);
        add_class(k, n, z + k * n);
      }
      return;
    }
    this->choose_image(block.image);
    if constexpr (softmax) add_products(block, n, z);
    for (int64_t k = 0; k < K; ++k) {
      find_targets(block, k, n);
      for (int64_t i = 0; i < n; i += N) {
        T* const e = z + k * n + i;
        const V grad = grad_of(k, i);
        (softmax ? V::load(e) * (grad - V::load(px.dot + i)) : slope(V::load(e)) * grad).store(e);
      }
    }
  }

  // Labels, or for soft targets 0; a pixel is ignored if its first channel is ignore_index.
  void find_pixels(const Block& block, int64_t n) {
    if (!params.dense()) return read_labels(params, params.label_classes(), block, px.label, &sums);
    const T ignored = static_cast<T>(params.ignore_index);
    gather(params.target, block, 0, T(0), px.target);
    for (int64_t i = 0; i < n; ++i) {
      px.label[i] = block.x[i / N][i % N] < 0 || px.target[i] == ignored ? T(kIgnored) : T(0);
    }
  }

  // y_k of the pixels
  void find_targets(const Block& block, int64_t k, int64_t n) {
    if (params.dense()) return gather(params.target, block, k, T(0), px.target);
    const V zero(T(0)), one(T(1)), label(static_cast<T>(K == 1 ? 1 : k));
    for (int64_t i = 0; i < n; i += N) select(V::load(px.label + i) == label, one, zero).store(px.target + i);
  }

  METRICSEG_HD static V sigmoid(V x, V* other) {
    const V zero(T(0)), one(T(1));
    const V e = exp_below_zero(-fabs(x)), inverse = one / (one + e);
    *other = select(x >= zero, e * inverse, inverse);
    return select(x >= zero, inverse, e * inverse);
  }

  METRICSEG_HD static V slope(V x) {
    V other;
    const V s = sigmoid(x, &other);
    return s * other;
  }

  METRICSEG_HD V grad_of(int64_t k, int64_t i) const {
    return V(mass_grad[k]) + V(hit_grad[k]) * V::load(px.target + i);
  }

  METRICSEG_HD void add_class(int64_t k, int64_t n, const T* z) {
    const V zero(T(0));
    V hits = zero, mass = zero, count = zero;
    for (int64_t i = 0; i < n; i += N) {
      const V factor = V::load(px.factor + i), value = V::load(z + i);
      const Mask<T> absent = factor == zero;
      V other, p = softmax ? factor * value : sigmoid(value, &other);
      p = select(absent, zero, p);
      V y = V::load(px.target + i);
      y = select(absent, zero, select(y >= zero, y, V(std::numeric_limits<T>::quiet_NaN())));
      hits = hits + p * y;
      mass = mass + p;
      count = count + y;
    }
    add_lanes(hits, sums.hits + k * N);
    add_lanes(mass, sums.mass + k * N);
    add_lanes(count, sums.count + k * N);
  }

  // dot = sum_k q_k dL/dp_k
  void add_products(const Block& block, int64_t n, const T* z) {
    for (int64_t i = 0; i < n; ++i) px.dot[i] = T(0);
    for (int64_t k = 0; k < K; ++k) {
      find_targets(block, k, n);
      for (int64_t i = 0; i < n; i += N) {
        (V::load(px.dot + i) + V::load(z + k * n + i) * grad_of(k, i)).store(px.dot + i);
      }
    }
    for (int64_t i = 0; i < n; i += N) (V::load(px.dot + i) * V::load(px.factor + i)).store(px.dot + i);
  }
};

template <typename T, typename Form>
inline void work(const CpuParams<T>& params, int64_t begin, int64_t end, T* scratch, double* out) {
  T *const pixels = scratch + walk_values(params), *const sums = pixels + 11 * block_pixels(params);
  Form form(params, Pixels<T>(pixels, block_pixels(params)), reinterpret_cast<double*>(sums));
  walk(params, params.slots, begin, end, scratch, form);
  if (out != nullptr) form.sums.write(Form::kOfLabels, out);
}

template <typename T>
constexpr Loops<T> loops{Lanes<T>::count, work<T, SoftmaxLabels<T>>, work<T, Elements<T, true>>,
                         work<T, Elements<T, false>>};

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::region
