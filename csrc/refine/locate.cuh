// Where a pixel of refined upsampling reads: its displacement, and three cells of each axis with their weights.
#pragma once

#include "../common/cuda/reduce.cuh"
#include "../common/cuda/scalar.cuh"
#include "math.h"
#include "params.h"

namespace metricseg::refine {

template <typename T>
struct Point {
  T y, x;
};

// A pixel of a tile, which may lie beyond the map.
struct Pixel {
  int64_t image;
  int row, column;
  bool inside;
};

// Pixel i of a tile, of the tiles of all images.
template <typename T>
__device__ __forceinline__ Pixel pixel_of(const RefineParams<T>& p, const Tiling& t, int64_t tile, int i) {
  const int64_t tiles = t.tiles();
  const int in_image = static_cast<int>(tile % tiles);
  const int row = in_image / t.tile_columns * t.rows + i / t.columns;
  const int column = in_image % t.tile_columns * t.columns + i % t.columns;
  return {tile / tiles, row, column, i < t.pixels() && row < p.height() && column < p.width()};
}

// The row or column of a neighbor; beyond the border, the border's.
__device__ __forceinline__ int clamped(int i, int labels) { return i < 0 ? 0 : i < labels ? i : labels - 1; }

// With l_k the logits of the neighbors: a_k = exp(l_k - top) / total.
template <typename T>
struct Softmax {
  T top, total;
};

template <typename T>
__device__ __forceinline__ Softmax<T> softmax_of(const T (&logits)[9]) {
  Softmax<T> s{logits[0], 0};
#pragma unroll
  for (int k = 1; k < 9; ++k) s.top = logits[k] > s.top ? logits[k] : s.top;
#pragma unroll
  for (int k = 0; k < 9; ++k) s.total += std::exp(logits[k] - s.top);
  return s;
}

// The logits of a pixel for its neighbors.
template <typename T, typename Stored>
__device__ __forceinline__ void load_logits(const RefineParams<T>& p, const Stored* from, const Pixel& at,
                                            T (&logits)[9]) {
  from += p.neighbor_logits.offset(at.image, 0, at.row, at.column);
#pragma unroll
  for (int k = 0; k < 9; ++k) logits[k] = widen<T>(from[k * p.neighbor_logits.k]);
}

template <typename T, typename Stored>
__device__ __forceinline__ Point<T> load_offset(const RefineParams<T>& p, const Stored* from, int64_t image, int row,
                                                int column) {
  from += p.offsets.offset(image, 0, row, column);
  return {widen<T>(from[0]), widen<T>(from[p.offsets.k])};
}

// The k-th neighbor's offset.
template <typename T, typename Stored>
__device__ __forceinline__ Point<T> load_neighbor(const RefineParams<T>& p, const Stored* from, const Pixel& at,
                                                  int k) {
  return load_offset(p, from, at.image, clamped(at.row + k / 3 - 1, p.height()),
                     clamped(at.column + k % 3 - 1, p.width()));
}

// o~ = sum_k a_k o_k
template <typename T, typename Stored>
__device__ __forceinline__ Point<T> average(const RefineParams<T>& p, const Stored* offsets, const Pixel& at,
                                            const T (&logits)[9], const Softmax<T>& s) {
  Point<T> sum{0, 0};
#pragma unroll
  for (int k = 0; k < 9; ++k) {
    const T weight = std::exp(logits[k] - s.top);
    const Point<T> o = load_neighbor(p, offsets, at, k);
    sum.y += weight * o.y;
    sum.x += weight * o.x;
  }
  return {sum.y / s.total, sum.x / s.total};
}

// The position of a pixel after its displacement.
template <typename T>
__device__ __forceinline__ Point<T> position_of(const RefineParams<T>& p, const Pixel& at) {
  Point<T> moved{0, 0};
  with_storage<T>(p.offsets, [&](auto* offsets) {
    if (p.neighbor_logits) {  // stored as the offsets are
      T logits[9];
      load_logits(p, reinterpret_cast<decltype(offsets)>(p.neighbor_logits.data), at, logits);
      moved = average(p, offsets, at, logits, softmax_of(logits));
    } else {
      moved = load_offset(p, offsets, at.image, at.row, at.column);
    }
  });
  return {static_cast<T>(at.row) + moved.y, static_cast<T>(at.column) + moved.x};
}

// Three cells of an axis from `first` on, and the derivatives of their weights by the position. What lies beyond the
// last cell is on it: cells that do not exist weigh 0.
template <typename T>
struct Span {
  int first;
  T weight[3], slope[3];
};

template <typename T>
__device__ __forceinline__ void fold(int64_t cells, int first, T (&shares)[3]) {
  if (first + 2 >= cells) {
    shares[1] += shares[2];
    shares[2] = 0;
  }
  if (first + 1 >= cells) {
    shares[0] += shares[1];
    shares[1] = 0;
  }
}

// All 0 for a NaN.
template <typename T>
__device__ __forceinline__ Span<T> span_of(T position, const Axis& axis, bool zeros) {
  Between<T> found;
  if (!find_labels(position, axis.labels, zeros, found)) return {};
  Span<T> span;
  const int64_t low = axis.cell(found.low);
  const bool same = low == axis.cell(found.high);
  const T t = axis.fraction<T>(found.low), u = axis.fraction<T>(found.high);
  span.first = static_cast<int>(low);
  combine(found.weight, same, t, u, span.weight);
  combine(found.slope, same, t, u, span.slope);
  fold(axis.cells, span.first, span.weight);
  fold(axis.cells, span.first, span.slope);
  return span;
}

// Of a position: one that is not finite passes no gradient to the displacement, and a NaN gives NaN.
enum class State : int { finite, infinite, nan };

template <typename T>
struct Located {
  Span<T> y, x;
  State state;
};

template <typename T>
__device__ __forceinline__ Located<T> locate(const RefineParams<T>& p, const Pixel& at) {
  const Point<T> position = position_of(p, at);
  if (!(position.y == position.y) || !(position.x == position.x)) return {{}, {}, State::nan};
  const bool finite = position.y - position.y == T(0) && position.x - position.x == T(0);
  return {span_of(position.y, p.y, p.zeros), span_of(position.x, p.x, p.zeros),
          finite ? State::finite : State::infinite};
}

}  // namespace metricseg::refine
