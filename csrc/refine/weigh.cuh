// The gradients of offsets and neighbor logits on CUDA, from those of the displacements, d = slopes:
//   do(q) = sum_{p, k: q_k(p) = q} a_k(p) d(p),    dl_k(p) = a_k(p) (<d, o(q_k)> - <d, o~>)
// A block takes a tile of pixels. Its threads compute d and softmax of these and of the pixels around once, in shared
// memory; then each gathers for its pixel. No atomics: a pixel's sum has one order.
#pragma once

#include <type_traits>

#include "locate.cuh"

namespace metricseg::refine {

constexpr int kWeighThreads = 256, kWeighColumns = 32;  // a pixel each

template <typename T>
struct Weighed {
  Point<T> d;
  Softmax<T> softmax;
};

inline int64_t weighed_pixels(const Tiling& t) { return int64_t(t.rows + 2) * (t.columns + 2); }

template <typename T>
__global__ void __launch_bounds__(kWeighThreads, sizeof(T) == 8 ? 1 : 2)
    weigh_kernel(RefineParams<T> p, Tiling t, const T* slopes) {
  const Pixel at = pixel_of(p, t, blockIdx.x, threadIdx.x);
  const int64_t N = p.pixels();
  slopes += at.image * 2 * N;
  const auto slope = [&](int row, int column) -> Point<T> {
    const int64_t n = row * p.x.labels + column;
    return {slopes[n], slopes[N + n]};
  };
  const auto write = [&](auto* to, const Map& map, int channel, T value) {
    narrow(value, to[map.offset(at.image, channel, at.row, at.column)]);
  };
  with_storage<T>(p.offsets, [&](auto* offsets) {
    using Stored = std::remove_pointer_t<decltype(offsets)>;
    auto* const grad_offsets = p.grad_offsets.template as<Stored>();
    if (!p.neighbor_logits) {  // o~ = o
      if (!at.inside) return;
      const Point<T> d = slope(at.row, at.column);
      write(grad_offsets, p.grad_offsets, 0, d.y);
      write(grad_offsets, p.grad_offsets, 1, d.x);
      return;
    }
    const auto* const logits = p.neighbor_logits.template as<Stored>();
    auto* const weighed = shared_memory<Weighed<T>>();  // [rows + 2, columns + 2]
    const int columns = t.columns + 2;
    const Pixel corner = pixel_of(p, t, blockIdx.x, 0);
    for (int i = threadIdx.x; i < (t.rows + 2) * columns; i += kWeighThreads) {
      const int row = corner.row - 1 + i / columns, column = corner.column - 1 + i % columns;
      Weighed<T> w{{0, 0}, {0, 1}};
      if (row >= 0 && row < p.height() && column >= 0 && column < p.width()) {
        T values[9];
        load_logits(p, logits, {at.image, row, column, true}, values);
        w = {slope(row, column), softmax_of(values)};
      }
      weighed[i] = w;
    }
    __syncthreads();
    if (!at.inside) return;
    const auto near = [&](int row, int column) -> const Weighed<T>& {
      return weighed[(row - corner.row + 1) * columns + column - corner.column + 1];
    };
    const auto moves = [](const Point<T>& d) { return d.y != T(0) || d.x != T(0); };
    if (p.grad_neighbor_logits) {
      auto* const grad = p.grad_neighbor_logits.template as<Stored>();
      const Weighed<T> w = near(at.row, at.column);
      T values[9];
      load_logits(p, logits, at, values);
      const Point<T> mean = average(p, offsets, at, values, w.softmax);
      const T along = w.d.y * mean.y + w.d.x * mean.x;
#pragma unroll
      for (int k = 0; k < 9; ++k) {
        const Point<T> o = load_neighbor(p, offsets, at, k);
        const T a = std::exp(values[k] - w.softmax.top) / w.softmax.total;
        write(grad, p.grad_neighbor_logits, k, moves(w.d) ? a * (w.d.y * o.y + w.d.x * o.x - along) : T(0));
      }
    }
    if (!p.grad_offsets) return;
    // the pixels around, and for each those of its neighbors that are this pixel
    Point<T> sum{0, 0};
    for (int row = at.row - 1; row <= at.row + 1; ++row) {
      for (int column = at.column - 1; column <= at.column + 1; ++column) {
        const Weighed<T>& w = near(row, column);  // beyond the map d = 0
        if (!moves(w.d)) continue;
        const Stored* const from = logits + p.neighbor_logits.offset(at.image, 0, row, column);
        T share = 0;
        for (int k = 0; k < 9; ++k) {
          const bool is_this =
              clamped(row + k / 3 - 1, p.height()) == at.row && clamped(column + k % 3 - 1, p.width()) == at.column;
          if (is_this) share += std::exp(widen<T>(from[k * p.neighbor_logits.k]) - w.softmax.top);
        }
        share /= w.softmax.total;
        sum.y += share * w.d.y;
        sum.x += share * w.d.x;
      }
    }
    write(grad_offsets, p.grad_offsets, 0, sum.y);
    write(grad_offsets, p.grad_offsets, 1, sum.x);
  });
}

}  // namespace metricseg::refine
