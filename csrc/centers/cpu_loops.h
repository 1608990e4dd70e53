// Loops of the centers family over tiles of pixels (../engines/pixel_rows/tiles.h). A tile is read once, in place. All
// work on it is done while it is in cache: its norms, its product with the K rows, the work on the [K, kTile] result,
// and backward the product that gives the gradient. Only sums over pixels need longer runs: there the tiles of a panel
// are kept, and `dots` reads them again. Derivation: docs/kernels/centers.md.
#pragma once

#include "../engines/pixel_rows/tiles.h"
#include "cpu_params.h"

namespace metricseg::centers {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

template <typename T>
class Tiles {
  using V = Lanes<T>;
  static constexpr int kLanes = V::count;
  static constexpr int N = kTile<T>;

  // The values of a tile's pixels, in two vectors.
  struct Pair {
    V of[2];

    METRICSEG_HD explicit Pair(T value) : of{V(value), V(value)} {}
    METRICSEG_HD explicit Pair(const T* p) : of{V::load(p), V::load(p + kLanes)} {}
    METRICSEG_HD void store(T* p) const {
      of[0].store(p);
      of[1].store(p + kLanes);
    }
  };

  const CpuParams<T>& params;
  const int64_t image, C, K;
  const int64_t x_step, a_step;  // from a tile of a panel to the next
  T* const x_tiles;              // [panel / N, C to whole blocks, N]
  T* const a_tiles;              // [panel / N, K to whole blocks, N]
  T* const products;             // [C or K to whole blocks, N]
  T* const lengths;              // [panel] |x_i|
  T* const inverses;             // [panel] 1 / max(|x_i|, eps), 0 for 0; 1 if the direction does not matter

 public:
  METRICSEG_HD Tiles(const CpuParams<T>& params, int64_t image, T* scratch)
      : params(params),
        image(image),
        C(params.channels),
        K(params.classes),
        x_step(round_up(C, kDotColumns) * N + 16),
        a_step(round_up(K, kDotRows) * N + 16),
        x_tiles(scratch),
        a_tiles(x_tiles + params.panel / N * x_step),
        products(a_tiles + params.panel / N * a_step),
        lengths(products + (C > K ? C + kPadRows : K + kPadRows) * N),
        inverses(lengths + params.panel) {}

  // logits_ik = r_i <x_i, w_k> + bias_k - square |x_i|^2, and target_similarity_i = r_i <x_i, w_k>
  void similarity_fwd(int64_t begin, int64_t end) const {
    for (int64_t first = begin; first < end; first += N) {
      const int64_t n = count(first, end);
      load_tile(params.features, image, params.width, first, n, C, x_tiles);
      const Pair squares = squares_of(x_tiles);
      set_lengths(squares, lengths, inverses);
      product(params.rows + params.set(image) * params.rows_stride, K, C, x_tiles, products);
      finish_logits(squares);
      store_tile(products, params.logits, image, params.width, first, n, K);
      if (params.norms) write_pixels(lengths, params.norms, image, 0, params.width, first, n);
      if (params.target_similarity) {
        T similarity[N];
        for_labels(first, n, [&](int64_t i, int64_t k) { similarity[i] = products[k * N + i]; }, similarity);
        write_pixels(similarity, params.target_similarity, image, 0, params.width, first, n);
      }
    }
  }

  // sums_k += G_ik r_i x_i;  dx_i = t_i - x_i <t_i, x_i> / |x_i|^2  or  t_i - 2 square x_i sum_k G_ik,
  // with t_i = r_i sum_k (G + O)_ik w_k
  void similarity_bwd(int64_t begin, int64_t end, T* sums) const {
    clear_ends();
    for (int64_t start = begin; start < end; start += params.panel) {
      const int64_t stop = end - start < params.panel ? end : start + params.panel;
      int64_t tiles = 0;
      for (int64_t first = start; first < stop; first += N, ++tiles) {
        const int64_t n = count(first, stop);
        T *const x = x_tiles + tiles * x_step, *const g = a_tiles + tiles * a_step;
        load_tile(params.features, image, params.width, first, n, C, x);
        load_tile(params.grad_logits, image, params.width, first, n, K, g);
        if (params.direction) weigh(first, n, tiles, g);
      }
      if (sums) dots(a_tiles, a_step, K, x_tiles, x_step, C, tiles, sums);
      if (!params.grad_features) continue;
      for (int64_t t = 0; t < tiles; ++t) gradient(start + t * N, count(start + t * N, stop), t);
    }
  }

  // sums_k += M_ik x_i, mass_k += M_ik, with M = softmax
  void soft_sums_fwd(int64_t begin, int64_t end, T* sums, T* mass) const {
    clear_ends();
    for (int64_t start = begin; start < end; start += params.panel) {
      const int64_t stop = end - start < params.panel ? end : start + params.panel;
      int64_t tiles = 0;
      for (int64_t first = start; first < stop; first += N, ++tiles) {
        const int64_t n = count(first, stop);
        T* const a = a_tiles + tiles * a_step;
        load_tile(params.features, image, params.width, first, n, C, x_tiles + tiles * x_step);
        softmax(first, n, a);
        for (int64_t k = 0; k < K; ++k) mass[k] += sum_of(V::load(a + k * N) + V::load(a + k * N + kLanes));
      }
      dots(a_tiles, a_step, K, x_tiles, x_step, C, tiles, sums);
    }
  }

  // dx_i = sum_k M_ik D_k;  dlogits_ik = M_ik (m_ik - sum_j M_ij m_ij), m_ik = <D_k, x_i> + d_k
  void soft_sums_bwd(int64_t begin, int64_t end) const {
    for (int64_t first = begin; first < end; first += N) {
      const int64_t n = count(first, end);
      softmax(first, n, a_tiles);
      if (params.grad_features) {
        product(params.rows_t + image * params.rows_t_stride, C, K, a_tiles, products);
        store_tile(products, params.grad_features, image, params.width, first, n, C);
      }
      if (params.grad_logits) {
        load_tile(params.features, image, params.width, first, n, C, x_tiles);
        product(params.rows + image * params.rows_stride, K, C, x_tiles, products);
        finish_soft(params.grad_mass + image * K);
        store_tile(products, params.grad_logits, image, params.width, first, n, K);
      }
    }
  }

 private:
  METRICSEG_HD static int64_t count(int64_t first, int64_t end) { return end - first < N ? end - first : N; }

  // Rows that only fill up a block of `dots`.
  void clear_ends() const {
    for (int64_t t = 0; t < params.panel / N; ++t) {
      for (int64_t i = C * N; i < x_step; ++i) x_tiles[t * x_step + i] = T(0);
      for (int64_t i = K * N; i < a_step; ++i) a_tiles[t * a_step + i] = T(0);
    }
  }

  Pair squares_of(const T* x) const {
    Pair sum(T(0));
    for (int64_t c = 0; c < C; ++c, x += N) {
      for (int h = 0; h < 2; ++h) {
        const V value = V::load(x + h * kLanes);
        sum.of[h] = sum.of[h] + value * value;
      }
    }
    return sum;
  }

  void set_lengths(const Pair& squares, T* length, T* inverse) const {
    for (int h = 0; h < 2; ++h) {
      const V value = sqrt(squares.of[h]), zero(T(0)), one(T(1));
      value.store(length + h * kLanes);
      const V known = select(value == zero, zero, one / max(V(params.eps), value));
      (params.direction ? known : one).store(inverse + h * kLanes);
    }
  }

  void finish_logits(const Pair& squares) const {
    const Pair scale(inverses);
    for (int64_t k = 0; k < K; ++k) {
      const V bias(params.bias ? params.bias[params.set(image) * K + k] : T(0));
      for (int h = 0; h < 2; ++h) {
        T* const z = products + k * N + h * kLanes;
        V value = V::load(z) * scale.of[h];
        if (params.bias) value = (value + bias) - V(params.square) * squares.of[h];
        value.store(z);
      }
    }
  }

  // f(i, k) for the pixels of a tile that have a label k; `other` of the other pixels is set to 0, unless null.
  template <typename F>
  METRICSEG_HD void for_labels(int64_t first, int64_t n, const F& f, T* other) const {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t label = label_at(params.labels, image, (first + i) / params.width, (first + i) % params.width);
      const int64_t k = class_of(label, K, params.ignore_index);
      if (k >= 0) {
        f(i, k);
      } else if (other) {
        other[i] = T(0);
      }
    }
  }

  // G -> r_i G of the tile t, whose norms forward has kept.
  void weigh(int64_t first, int64_t n, int64_t t, T* g) const {
    T *const length = lengths + t * N, *const inverse = inverses + t * N;
    read_pixels(params.norms, image, 0, params.width, first, n, length);
    for (int64_t i = 0; i < N; ++i) {
      length[i] = i < n ? length[i] : T(0);
      inverse[i] = length[i] == T(0) ? T(0) : T(1) / (length[i] < params.eps ? params.eps : length[i]);
    }
    const Pair scale(inverse);
    for (int64_t k = 0; k < K; ++k, g += N) {
      for (int h = 0; h < 2; ++h) (V::load(g + h * kLanes) * scale.of[h]).store(g + h * kLanes);
    }
  }

  // dx of the tile t.
  void gradient(int64_t first, int64_t n, int64_t t) const {
    const T* const x = x_tiles + t * x_step;
    T* const g = a_tiles + t * a_step;
    if (params.grad_target_similarity) {
      T grad[N];
      read_pixels(params.grad_target_similarity, image, 0, params.width, first, n, grad);
      for_labels(first, n, [&](int64_t i, int64_t k) { g[k * N + i] += grad[i] * inverses[t * N + i]; }, nullptr);
    }
    product(params.rows_t + params.set(image) * params.rows_t_stride, C, K, g, products);
    if (params.direction || params.square != T(0)) {
      const Pair factor = params.direction ? along(x, Pair(lengths + t * N)) : weights(g);
      for (int64_t c = 0; c < C; ++c) {
        for (int h = 0; h < 2; ++h) {
          T* const p = products + c * N + h * kLanes;
          (V::load(p) - factor.of[h] * V::load(x + c * N + h * kLanes)).store(p);
        }
      }
    }
    store_tile(products, params.grad_features, image, params.width, first, n, C);
  }

  // <t_i, x_i> / |x_i|^2, or 0 below the least norm
  Pair along(const T* x, const Pair& length) const {
    Pair sum(T(0));
    for (int64_t c = 0; c < C; ++c) {
      for (int h = 0; h < 2; ++h) {
        sum.of[h] = sum.of[h] + V::load(products + c * N + h * kLanes) * V::load(x + c * N + h * kLanes);
      }
    }
    for (int h = 0; h < 2; ++h) {
      sum.of[h] = select(length.of[h] < V(params.eps), V(T(0)), sum.of[h] / (length.of[h] * length.of[h]));
    }
    return sum;
  }

  // 2 square sum_k G_ik
  Pair weights(const T* g) const {
    Pair sum(T(0));
    for (int64_t k = 0; k < K; ++k) {
      for (int h = 0; h < 2; ++h) sum.of[h] = sum.of[h] + V::load(g + k * N + h * kLanes);
    }
    for (int h = 0; h < 2; ++h) sum.of[h] = V(T(2) * params.square) * sum.of[h];
    return sum;
  }

  // a [K, N] = softmax over K of the logits, 0 beyond n
  void softmax(int64_t first, int64_t n, T* a) const {
    load_tile(params.logits, image, params.width, first, n, K, a);
    for (int h = 0; h < 2; ++h) {
      T* const p = a + h * kLanes;
      V most = V::load(p), total(T(0));
      for (int64_t k = 1; k < K; ++k) most = max(V::load(p + k * N), most);
      for (int64_t k = 0; k < K; ++k) {
        const V e = exp_below_zero(V::load(p + k * N) - most);
        e.store(p + k * N);
        total = total + e;
      }
      const V scale = V(T(1)) / total;
      for (int64_t k = 0; k < K; ++k) (V::load(p + k * N) * scale).store(p + k * N);
    }
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t i = n; i < N; ++i) a[k * N + i] = T(0);
    }
  }

  // products [K, N]: <D_k, x_i> -> dlogits
  void finish_soft(const T* grad_mass) const {
    for (int h = 0; h < 2; ++h) {
      V mean(T(0));
      for (int64_t k = 0; k < K; ++k) {
        T* const p = products + k * N + h * kLanes;
        const V moved = V::load(p) + V(grad_mass[k]);
        moved.store(p);
        mean = mean + V::load(a_tiles + k * N + h * kLanes) * moved;
      }
      for (int64_t k = 0; k < K; ++k) {
        T* const p = products + k * N + h * kLanes;
        (V::load(a_tiles + k * N + h * kLanes) * (V::load(p) - mean)).store(p);
      }
    }
  }
};

template <typename T>
void similarity_fwd(const CpuParams<T>& params, int64_t image, int64_t begin, int64_t end, T* scratch, T*, T*) {
  Tiles<T>(params, image, scratch).similarity_fwd(begin, end);
}

template <typename T>
void similarity_bwd(const CpuParams<T>& params, int64_t image, int64_t begin, int64_t end, T* scratch, T* sums, T*) {
  Tiles<T>(params, image, scratch).similarity_bwd(begin, end, sums);
}

template <typename T>
void soft_sums_fwd(const CpuParams<T>& params, int64_t image, int64_t begin, int64_t end, T* scratch, T* sums,
                   T* mass) {
  Tiles<T>(params, image, scratch).soft_sums_fwd(begin, end, sums, mass);
}

template <typename T>
void soft_sums_bwd(const CpuParams<T>& params, int64_t image, int64_t begin, int64_t end, T* scratch, T*, T*) {
  Tiles<T>(params, image, scratch).soft_sums_bwd(begin, end);
}

template <typename T>
constexpr Loops<T> loops{similarity_fwd<T>, similarity_bwd<T>, soft_sums_fwd<T>, soft_sums_bwd<T>, pack<T>};

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::centers
