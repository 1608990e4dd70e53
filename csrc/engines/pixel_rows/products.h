// Products of a few rows with many pixels, in vector registers: the two shapes in all ops between classes and a feature
// map. Pixels come in tiles [values, kTile] with two vectors of pixels to a row, and zeros if there is no pixel. A tile
// is packed once and stays in L1 or L2.
//
//   product   out [M, kTile]  = A [M, J] tile [J, kTile]        kRows x 2 vectors of sums in registers: of each step of
//                                                               J, two loads and kRows broadcasts for 2 kRows products
//   dots      sums [M, J]    += A [M, pixels] X [J, pixels]^T   kDotRows x kDotColumns vectors of sums in registers,
//                                                               added across lanes at the end of a panel of tiles
//
// These products reach 170 GFLOP/s on a core of an AMD EPYC. The library of torch reaches 85 there, because it takes
// half-wide vectors. Packing for it would also cost another pass if M is 19 and J 512.
#pragma once

#include "../../common/simd/lanes.h"

namespace metricseg {
namespace METRICSEG_SIMD {

constexpr int kRows = METRICSEG_SIMD_BYTES == 64 ? 14 : 6;  // of 32 registers, or 16
constexpr int kDotRows = METRICSEG_SIMD_BYTES == 64 ? 4 : 3;
constexpr int kDotColumns = METRICSEG_SIMD_BYTES == 64 ? 6 : 3;
template <typename T>
constexpr int kTile = 2 * Lanes<T>::count;  // pixels
template <typename T>                       // of a block, to whole vectors
constexpr int kDots = (kDotRows * kDotColumns + Lanes<T>::count - 1) / Lanes<T>::count * Lanes<T>::count;

METRICSEG_HD int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Rows of A in a block: at most kRows, about the same in all blocks.
METRICSEG_HD int64_t block_rows(int64_t rows) {
  const int64_t blocks = (rows + kRows - 1) / kRows;
  return blocks > 0 ? (rows + blocks - 1) / blocks : 1;
}

// a [M, J] with any strides -> out [blocks, J, block_rows], zeros beyond M
template <typename T>
void pack(const T* a, int64_t row_stride, int64_t column_stride, int64_t M, int64_t J, T* out) {
  const int64_t rows = block_rows(M);
  for (int64_t begin = 0; begin < M; begin += rows) {
    for (int64_t j = 0; j < J; ++j) {
      for (int64_t r = begin; r < begin + rows; ++r) *out++ = r < M ? a[r * row_stride + j * column_stride] : T(0);
    }
  }
}

// out [R, kTile] = a [J, R]^T tile [J, kTile]
template <int R, typename T>
void product_block(const T* a, const T* tile, int64_t J, T* out) {
  constexpr int n = Lanes<T>::count;
  Lanes<T> sums[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = Lanes<T>(T(0));
  for (int64_t j = 0; j < J; ++j, a += R, tile += 2 * n) {
    const Lanes<T> left = Lanes<T>::load(tile), right = Lanes<T>::load(tile + n);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Lanes<T> value(a[r]);
      sums[r][0] = sums[r][0] + value * left;
      sums[r][1] = sums[r][1] + value * right;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    sums[r][0].store(out + 2 * n * r);
    sums[r][1].store(out + 2 * n * r + n);
  }
}

template <int R, typename T>
METRICSEG_HD void product_of(int64_t rows, const T* a, const T* tile, int64_t J, T* out) {
  if constexpr (R > 1) {
    if (rows < R) return product_of<R - 1>(rows, a, tile, J, out);
  }
  product_block<R>(a, tile, J, out);
}

// out [M to whole blocks, kTile] = A [M, J] tile [J, kTile]; A packed
template <typename T>
void product(const T* packed, int64_t M, int64_t J, const T* tile, T* out) {
  const int64_t rows = block_rows(M);
  for (int64_t begin = 0; begin < M; begin += rows) {
    product_of<kRows>(rows, packed + begin * J, tile, J, out + begin * kTile<T>);
  }
}

// Lane i becomes the sum of vector i: a transposition that adds on its way.
template <int step, typename T>
METRICSEG_HD Lanes<T> sums_of(Lanes<T>* v) {
  constexpr int n = Lanes<T>::count;
  if constexpr (step < n) {
#pragma GCC unroll 16
    for (int i = 0; i < n / (2 * step); ++i) {
      v[i] = interleave<step, false>(v[2 * i], v[2 * i + 1]) + interleave<step, true>(v[2 * i], v[2 * i + 1]);
    }
    return sums_of<2 * step>(v);
  } else {
    return v[0];
  }
}

// Rows [m, kDotRows) of A with columns [j, kDotColumns) of X: over the tiles of a panel, a_step and x_step apart
// in memory.
template <typename T>
void dots_block(const T* a, int64_t a_step, const T* x, int64_t x_step, int64_t tiles, T* out) {
  constexpr int n = Lanes<T>::count;
  Lanes<T> sums[kDots<T>];
#pragma GCC unroll 32
  for (int i = 0; i < kDots<T>; ++i) sums[i] = Lanes<T>(T(0));
  for (int64_t t = 0; t < tiles; ++t, a += a_step, x += x_step) {
    for (int half = 0; half < 2 * n; half += n) {
      Lanes<T> columns[kDotColumns];
#pragma GCC unroll 16
      for (int c = 0; c < kDotColumns; ++c) columns[c] = Lanes<T>::load(x + 2 * n * c + half);
#pragma GCC unroll 16
      for (int r = 0; r < kDotRows; ++r) {
        const Lanes<T> row = Lanes<T>::load(a + 2 * n * r + half);
#pragma GCC unroll 16
        for (int c = 0; c < kDotColumns; ++c) {
          sums[kDotColumns * r + c] = sums[kDotColumns * r + c] + row * columns[c];
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kDots<T>; i += n) sums_of<1>(sums + i).store(out + i);
}

// sums [M, J] += A X^T over the pixels of a panel: A and X in tiles of M and J rows to whole blocks.
template <typename T>
void dots(const T* a, int64_t a_step, int64_t M, const T* x, int64_t x_step, int64_t J, int64_t tiles, T* sums) {
  for (int64_t j = 0; j < J; j += kDotColumns) {
    const int64_t columns = J - j < kDotColumns ? J - j : kDotColumns;
    for (int64_t m = 0; m < M; m += kDotRows) {
      const int64_t rows = M - m < kDotRows ? M - m : kDotRows;
      T found[kDots<T>];
      dots_block(a + m * kTile<T>, a_step, x + j * kTile<T>, x_step, tiles, found);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < columns; ++c) sums[(m + r) * J + j + c] += found[kDotColumns * r + c];
      }
    }
  }
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg
