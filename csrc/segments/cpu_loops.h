// Assignment of pixels to centers over tiles of pixels (../engines/pixel_rows/tiles.h), and the sums of the next
// centers from the same tile: one read of the embeddings an iteration, in place. The two rows of the location are added
// to a tile in cache. Sums are added a row at a time, after a transposition in registers, so their cost does not depend
// on the number of clusters. Derivation: docs/kernels/segments.md.
#pragma once

#include "../engines/pixel_rows/resized_tiles.h"
#include "cpu_params.h"

namespace metricseg::segments {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

template <typename T>
class Pixels {
  using V = Lanes<T>;
  static constexpr int kLanes = V::count;
  static constexpr int N = kTile<T>;

  const CpuParams<T>& params;
  const int64_t image, D, J, K, stride;
  T* const tile;      // [stride, N]: t_i = [x_i; L_i (y_i, x_i)], zeros from J on
  T* const products;  // [live to whole blocks, N]
  T* const partial;   // [K + 1, stride] sums of this run
  T weight[N];        // w_i, with q_i = w_i t_i
  bool known[N];
  int32_t cluster[N];  // K for none

 public:
  METRICSEG_HD Pixels(const CpuParams<T>& params, int64_t image, T* scratch)
      : params(params),
        image(image),
        D(params.channels),
        J(params.dims()),
        K(params.clusters),
        stride(params.stride()),
        tile(scratch),
        products(tile + stride * N),
        partial(products + (K + kPadRows) * N) {}

  void assign(const Live<T>* live, int64_t begin, int64_t end, T* sums, int64_t* members, bool last) {
    for (int64_t i = J * N; i < stride * N; ++i) tile[i] = T(0);
    if (sums) {
      for (int64_t i = 0; i < params.sums_values(); ++i) partial[i] = T(0);
    }
    for (int64_t first = begin; first < end; first += N) {
      const int64_t n = end - first < N ? end - first : N;
      load(first, n);
      if (live) {
        join_nearest(*live, n);
      } else {
        join_first(first, n);
      }
      if (sums) {
        add_rows();
        for (int64_t i = 0; i < N; ++i) ++members[cluster[i]];
      }
      if (last) write_ids(first, n);
    }
    if (sums) {
      for (int64_t i = 0; i < params.sums_values(); ++i) sums[i] += partial[i];
    }
  }

 private:
  // The tile, weights, and which pixels take part. With s = |x|^2 and L = max(|x|, eps):
  //   v = x / L,  q = [v; y; x] / |[v; y; x]| = w t,  w = 1 / (L max(|[v; y; x]|, eps)), or 0 for a zero vector
  void load(int64_t first, int64_t n) {
    if (params.resized) {
      load_resized_tile(params.embeddings, params.resized, image, params.width, first, n, D, tile);
    } else {
      load_tile(params.embeddings, image, params.width, first, n, D, tile);
    }
    T y[N], x[N];
    const bool located = J > D;
    if (located) locations(first, n, y, x);
    const V zero(T(0)), one(T(1)), eps(params.eps);
    T total[N];
    for (int h = 0; h < N; h += kLanes) {
      V square(T(0));
      for (int64_t c = 0; c < D; ++c) {
        const V value = V::load(tile + c * N + h);
        square = square + value * value;
      }
      const V norm = sqrt(square), length = select(norm < eps, eps, norm), v = norm / length;
      V all = v * v;
      if (located) {
        const V row = V::load(y + h), column = V::load(x + h);
        (length * row).store(tile + D * N + h);
        (length * column).store(tile + (D + 1) * N + h);
        all = all + row * row + column * column;
        const V whole = sqrt(all);
        select(all == zero, zero, one / (length * select(whole < eps, eps, whole))).store(weight + h);
      } else {
        (one / length).store(weight + h);
      }
      all.store(total + h);
    }
    for (int64_t i = 0; i < N; ++i) known[i] = i < n && total[i] - total[i] == T(0);  // not NaN, not infinite
    if (params.valid) {
      for (int64_t i = 0; i < n; ++i) {
        known[i] =
            known[i] && label_at(params.valid, image, (first + i) / params.width, (first + i) % params.width) != 0;
      }
    }
  }

  void locations(int64_t first, int64_t n, T* y, T* x) const {
    for (int64_t i = n; i < N; ++i) y[i] = x[i] = T(0);
    if (params.location) {
      read_pixels(params.location, image, 0, params.width, first, n, y);
      read_pixels(params.location, image, 1, params.width, first, n, x);
      return;
    }
    const T rows = static_cast<T>(params.height > 1 ? params.height - 1 : 1);
    const T columns = static_cast<T>(params.width > 1 ? params.width - 1 : 1);
    int64_t row = first / params.width, column = first % params.width;
    for (int64_t i = 0; i < n; ++i) {
      y[i] = static_cast<T>(row);
      x[i] = static_cast<T>(column);
      if (++column == params.width) column = 0, ++row;
    }
    for (int64_t i = 0; i < N; ++i) y[i] /= rows, x[i] /= columns;
  }

  void join_first(int64_t first, int64_t n) {
    for (int64_t i = 0; i < N; ++i) {
      int64_t k = -1;
      if (i < n && known[i]) {
        const int64_t row = (first + i) / params.width, column = (first + i) % params.width;
        k = params.init ? label_at(params.init, image, row, column)
                        : row / params.block_rows * params.grid_columns + column / params.block_columns;
      }
      cluster[i] = static_cast<int32_t>(k >= 0 && k < K ? k : K);
    }
  }

  // z_i = argmax_k <t_i, m_k>, the lowest of equals: w_i > 0 changes no order
  void join_nearest(const Live<T>& live, int64_t n) {
    if (live.count == 0) {
      for (int64_t i = 0; i < N; ++i) cluster[i] = static_cast<int32_t>(K);
      return;
    }
    product(live.packed, live.count, J, tile, products);
    T nearest[N];
    for (int h = 0; h < N; h += kLanes) {
      V most = V::load(products + h), index(T(0));
      for (int64_t k = 1; k < live.count; ++k) {
        const V value = V::load(products + k * N + h);
        const auto more = value > most;
        most = select(more, value, most);
        index = select(more, V(static_cast<T>(k)), index);
      }
      index.store(nearest + h);
    }
    for (int64_t i = 0; i < N; ++i) {
      cluster[i] = known[i] ? live.clusters[static_cast<int64_t>(nearest[i])] : static_cast<int32_t>(K);
    }
  }

  // sums_z += w_i t_i
  void add_rows() const {
    for (int64_t c = 0; c < stride; c += kLanes) {
      for (int h = 0; h < N; h += kLanes) {
        const V w = V::load(weight + h);
        V square[kLanes];
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) square[j] = V::load(tile + (c + j) * N + h) * w;
        transpose<1>(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
          T* const sum = partial + cluster[h + i] * stride + c;
          (V::load(sum) + square[i]).store(sum);
        }
      }
    }
  }

  void write_ids(int64_t first, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) {
      char* const p = params.ids.at(image, 0, (first + i) / params.width, (first + i) % params.width);
      *reinterpret_cast<int64_t*>(p) = cluster[i] < K ? cluster[i] : -1;
    }
  }
};

template <typename T>
void assign(const CpuParams<T>& params, const Live<T>* live, int64_t image, int64_t begin, int64_t end, T* scratch,
            T* sums, int64_t* members, bool last) {
  Pixels<T>(params, image, scratch).assign(live, begin, end, sums, members, last);
}

template <typename T>
constexpr Loops<T> loops{assign<T>, pack<T>};

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::segments
