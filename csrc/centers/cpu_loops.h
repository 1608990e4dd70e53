// Loops of the centers family over tiles of pixels (../engines/pixel_rows/tiles.h). A tile is read once, in place. All
// work on it is done while it is in cache: its norms, its product with the K rows, the work on the [K, kTile] result,
// and backward the product that gives the gradient. Only sums over pixels need longer runs: there the tiles of a panel
// are kept, and `dots` reads them again. Derivation: docs/kernels/centers.md.
#pragma once

#include "../engines/pixel_rows/tiles.h"
#include "cpu_job.h"

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

  const Job<T>& job;
  const int64_t image, C, K;
  const int64_t x_step, a_step;  // from a tile of a panel to the next
  T* const x_tiles;              // [panel / N, C to whole blocks, N]
  T* const a_tiles;              // [panel / N, K to whole blocks, N]
  T* const products;             // [C or K to whole blocks, N]
  T* const lengths;              // [panel] |x_i|
  T* const inverses;             // [panel] 1 / max(|x_i|, eps), 0 for 0; 1 if the direction does not matter

 public:
  METRICSEG_HD Tiles(const Job<T>& job, int64_t image, T* scratch)
      : job(job),
        image(image),
        C(job.channels),
        K(job.classes),
        x_step(round_up(C, kDotColumns) * N + 16),
        a_step(round_up(K, kDotRows) * N + 16),
        x_tiles(scratch),
        a_tiles(x_tiles + job.panel / N * x_step),
        products(a_tiles + job.panel / N * a_step),
        lengths(products + (C > K ? C + kPadRows : K + kPadRows) * N),
        inverses(lengths + job.panel) {}

  // logits_ik = r_i <x_i, w_k> + bias_k - square |x_i|^2, and own_i
  void similarity(int64_t begin, int64_t end) const {
    for (int64_t first = begin; first < end; first += N) {
      const int64_t n = count(first, end);
      load_tile(job.features, image, job.width, first, n, C, x_tiles);
      const Pair squares = squares_of(x_tiles);
      set_lengths(squares, lengths, inverses);
      product(job.rows + job.set(image) * job.rows_stride, K, C, x_tiles, products);
      finish_logits(squares);
      store_tile(products, job.logits, image, job.width, first, n, K);
      if (job.norms) write_pixels(lengths, job.norms, image, 0, job.width, first, n);
      if (job.own) {
        T own[N];
        for_labels(first, n, [&](int64_t i, int64_t k) { own[i] = products[k * N + i]; }, own);
        write_pixels(own, job.own, image, 0, job.width, first, n);
      }
    }
  }

  // sums_k += G_ik r_i x_i;  dx_i = t_i - x_i <t_i, x_i> / |x_i|^2  or  t_i - 2 square x_i sum_k G_ik,
  // with t_i = r_i sum_k (G + O)_ik w_k
  void similarity_grad(int64_t begin, int64_t end, T* sums) const {
    clear_ends();
    for (int64_t start = begin; start < end; start += job.panel) {
      const int64_t stop = end - start < job.panel ? end : start + job.panel;
      int64_t tiles = 0;
      for (int64_t first = start; first < stop; first += N, ++tiles) {
        const int64_t n = count(first, stop);
        T *const x = x_tiles + tiles * x_step, *const g = a_tiles + tiles * a_step;
        load_tile(job.features, image, job.width, first, n, C, x);
        load_tile(job.grad_logits, image, job.width, first, n, K, g);
        if (job.direction) weigh(first, n, tiles, g);
      }
      if (sums) dots(a_tiles, a_step, K, x_tiles, x_step, C, tiles, sums);
      if (!job.grad_features) continue;
      for (int64_t t = 0; t < tiles; ++t) gradient(start + t * N, count(start + t * N, stop), t);
    }
  }

  // sums_k += M_ik x_i, mass_k += M_ik, with M = softmax
  void soft_sums(int64_t begin, int64_t end, T* sums, T* mass) const {
    clear_ends();
    for (int64_t start = begin; start < end; start += job.panel) {
      const int64_t stop = end - start < job.panel ? end : start + job.panel;
      int64_t tiles = 0;
      for (int64_t first = start; first < stop; first += N, ++tiles) {
        const int64_t n = count(first, stop);
        T* const a = a_tiles + tiles * a_step;
        load_tile(job.features, image, job.width, first, n, C, x_tiles + tiles * x_step);
        softmax(first, n, a);
        for (int64_t k = 0; k < K; ++k) mass[k] += sum_of(V::load(a + k * N) + V::load(a + k * N + kLanes));
      }
      dots(a_tiles, a_step, K, x_tiles, x_step, C, tiles, sums);
    }
  }

  // dx_i = sum_k M_ik D_k;  dlogits_ik = M_ik (m_ik - sum_j M_ij m_ij), m_ik = <D_k, x_i> + d_k
  void soft_sums_grad(int64_t begin, int64_t end) const {
    for (int64_t first = begin; first < end; first += N) {
      const int64_t n = count(first, end);
      softmax(first, n, a_tiles);
      if (job.grad_features) {
        product(job.rows_t + image * job.rows_t_stride, C, K, a_tiles, products);
        store_tile(products, job.grad_features, image, job.width, first, n, C);
      }
      if (job.grad_logits) {
        load_tile(job.features, image, job.width, first, n, C, x_tiles);
        product(job.rows + image * job.rows_stride, K, C, x_tiles, products);
        finish_soft(job.grad_mass + image * K);
        store_tile(products, job.grad_logits, image, job.width, first, n, K);
      }
    }
  }

 private:
  METRICSEG_HD static int64_t count(int64_t first, int64_t end) { return end - first < N ? end - first : N; }

  // Rows that only fill up a block of `dots`.
  void clear_ends() const {
    for (int64_t t = 0; t < job.panel / N; ++t) {
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
      const V known = select(value == zero, zero, one / max(V(job.eps), value));
      (job.direction ? known : one).store(inverse + h * kLanes);
    }
  }

  void finish_logits(const Pair& squares) const {
    const Pair scale(inverses);
    for (int64_t k = 0; k < K; ++k) {
      const V bias(job.bias ? job.bias[job.set(image) * K + k] : T(0));
      for (int h = 0; h < 2; ++h) {
        T* const z = products + k * N + h * kLanes;
        V value = V::load(z) * scale.of[h];
        if (job.bias) value = (value + bias) - V(job.square) * squares.of[h];
        value.store(z);
      }
    }
  }

  // f(i, k) for the pixels of a tile that have a label k; the others' `own` is 0.
  template <typename F>
  METRICSEG_HD void for_labels(int64_t first, int64_t n, const F& f, T* own) const {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t k = label_at(job.labels, image, (first + i) / job.width, (first + i) % job.width);
      if (k != job.ignore_index && k >= 0 && k < K) {
        f(i, k);
      } else if (own) {
        own[i] = T(0);
      }
    }
  }

  // G -> r_i G of the tile t, whose norms forward has kept.
  void weigh(int64_t first, int64_t n, int64_t t, T* g) const {
    T *const length = lengths + t * N, *const inverse = inverses + t * N;
    read_pixels(job.norms, image, 0, job.width, first, n, length);
    for (int64_t i = 0; i < N; ++i) {
      length[i] = i < n ? length[i] : T(0);
      inverse[i] = length[i] == T(0) ? T(0) : T(1) / (length[i] < job.eps ? job.eps : length[i]);
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
    if (job.grad_own) {
      T own[N];
      read_pixels(job.grad_own, image, 0, job.width, first, n, own);
      for_labels(first, n, [&](int64_t i, int64_t k) { g[k * N + i] += own[i] * inverses[t * N + i]; }, nullptr);
    }
    product(job.rows_t + job.set(image) * job.rows_t_stride, C, K, g, products);
    if (job.direction || job.square != T(0)) {
      const Pair factor = job.direction ? along(x, Pair(lengths + t * N)) : weights(g);
      for (int64_t c = 0; c < C; ++c) {
        for (int h = 0; h < 2; ++h) {
          T* const p = products + c * N + h * kLanes;
          (V::load(p) - factor.of[h] * V::load(x + c * N + h * kLanes)).store(p);
        }
      }
    }
    store_tile(products, job.grad_features, image, job.width, first, n, C);
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
      sum.of[h] = select(length.of[h] < V(job.eps), V(T(0)), sum.of[h] / (length.of[h] * length.of[h]));
    }
    return sum;
  }

  // 2 square sum_k G_ik
  Pair weights(const T* g) const {
    Pair sum(T(0));
    for (int64_t k = 0; k < K; ++k) {
      for (int h = 0; h < 2; ++h) sum.of[h] = sum.of[h] + V::load(g + k * N + h * kLanes);
    }
    for (int h = 0; h < 2; ++h) sum.of[h] = V(T(2) * job.square) * sum.of[h];
    return sum;
  }

  // a [K, N] = softmax over K of the logits, 0 beyond n
  void softmax(int64_t first, int64_t n, T* a) const {
    load_tile(job.logits, image, job.width, first, n, K, a);
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
void similarity(const Job<T>& job, int64_t image, int64_t begin, int64_t end, T* scratch, T*, T*) {
  Tiles<T>(job, image, scratch).similarity(begin, end);
}

template <typename T>
void similarity_grad(const Job<T>& job, int64_t image, int64_t begin, int64_t end, T* scratch, T* sums, T*) {
  Tiles<T>(job, image, scratch).similarity_grad(begin, end, sums);
}

template <typename T>
void soft_sums(const Job<T>& job, int64_t image, int64_t begin, int64_t end, T* scratch, T* sums, T* mass) {
  Tiles<T>(job, image, scratch).soft_sums(begin, end, sums, mass);
}

template <typename T>
void soft_sums_grad(const Job<T>& job, int64_t image, int64_t begin, int64_t end, T* scratch, T*, T*) {
  Tiles<T>(job, image, scratch).soft_sums_grad(begin, end);
}

template <typename T>
constexpr Loops<T> loops{similarity<T>, similarity_grad<T>, soft_sums<T>, soft_sums_grad<T>, pack<T>};

constexpr Workers workers{loops<float>, loops<double>};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::centers
