// Loops of a matrix product of the pair stream, for one vector width. A comes in packed blocks [depth, R] of R rows, B
// in packed panels [depth, kTile]: the register tile of ../pixel_rows/products.h reads both in order, R x 2 vectors of
// sums, two loads and R broadcasts for each step of K. See product_run.h for the order of the work.
#pragma once

#include "../pixel_rows/products.h"
#include "product.h"

namespace metricseg::row_pairs {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

// Places along a dimension of a matrix, from `begin` on: of the matrix itself, or of those that `taken` lists.
class Places {
  const int64_t* const taken;
  const int64_t begin, stride;

 public:
  METRICSEG_HD Places(const int64_t* taken, int64_t begin, int64_t stride)
      : taken(taken ? taken + begin : nullptr), begin(begin), stride(stride) {}
  METRICSEG_HD bool adjacent() const { return stride == 1 && !taken; }
  METRICSEG_HD int64_t operator[](int64_t i) const { return (taken ? taken[i] : begin + i) * stride; }
};

// to [depth, width] = from [available, depth] transposed. Fast if one of the strides is 1. Rows from `available` on
// hold no defined values. Writes up to one vector beyond the end of `to`.
template <typename T>
void pack_panel(const T* from, const Places& row, const Places& step, int64_t available, int64_t depth, int64_t width,
                T* to) {
  constexpr int64_t n = Lanes<T>::count;
  const int64_t count = available < width ? available : width, whole = round_up(width, n);
  if (row.adjacent() &&
      available >= whole) {  // the last vector may reach into the next step, which is written after it
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t i = 0; i < whole; i += n) Lanes<T>::load(from + step[k] + row[i]).store(to + k * width + i);
    }
    return;
  }
  const int64_t squares = step.adjacent() ? depth / n * n : 0;
  for (int64_t i = whole - n; i >= 0 && squares > 0; i -= n) {  // backward, for the same reason
    const T* rows[n];
    for (int64_t r = 0; r < n; ++r) rows[r] = from + row[i + r < count ? i + r : count - 1] + step[0];
    for (int64_t k = 0; k < squares; k += n) {
      Lanes<T> square[n];
#pragma GCC unroll 16
      for (int r = 0; r < n; ++r) square[r] = Lanes<T>::load(rows[r] + k);
      transpose<1>(square);
#pragma GCC unroll 16
      for (int r = 0; r < n; ++r) square[r].store(to + (k + r) * width + i);
    }
  }
  for (int64_t k = squares; k < depth; ++k) {
    for (int64_t i = 0; i < width; ++i) to[k * width + i] = i < count ? from[row[i] + step[k]] : T(0);
  }
}

template <typename T>
Sizes sizes(int64_t M) {
  constexpr int64_t n = Lanes<T>::count;
  const int64_t rows = block_rows(M);
  return {rows, round_up(rows * kDepth, n) + n, kTile<T>};
}

template <typename T>
METRICSEG_HD T* packed_block(const Product<T>& p, const Sizes& s, int64_t step, int64_t block) {
  return p.packed + (step * ((p.M + s.block_rows - 1) / s.block_rows) + block) * s.block_values;
}

template <typename T>
void pack_block(const Product<T>& p, int64_t step, int64_t block) {
  const Sizes s = sizes<T>(p.M);
  const int64_t row = block * s.block_rows, k = p.begin + step * kDepth,
                depth = p.end - k < kDepth ? p.end - k : kDepth;
  pack_panel(p.a, Places(nullptr, row, p.a_row), Places(nullptr, k, p.a_step), p.M - row, depth, s.block_rows,
             packed_block(p, s, step, block));
}

// out [rows, columns] = values [rows, kTile], or out += sign values
template <typename T>
METRICSEG_HD void write_block(const T* values, int64_t rows, int64_t columns, T sign, bool accumulate, T* out,
                              int64_t out_row) {
  using V = Lanes<T>;
  constexpr int64_t n = V::count;
  for (int64_t r = 0; r < rows; ++r, values += kTile<T>, out += out_row) {
    if (columns < kTile<T>) {
      for (int64_t j = 0; j < columns; ++j) out[j] = accumulate ? out[j] + sign * values[j] : values[j];
    } else if (accumulate) {
      (V::load(out) + V(sign) * V::load(values)).store(out);
      (V::load(out + n) + V(sign) * V::load(values + n)).store(out + n);
    } else {
      V::load(values).store(out);
      V::load(values + n).store(out + n);
    }
  }
}

template <typename T>
void multiply(const Product<T>& p, int64_t first, int64_t last, int64_t column, T* panel) {
  const Sizes s = sizes<T>(p.M);
  const int64_t columns = p.N - column < kTile<T> ? p.N - column : kTile<T>;
  alignas(64) T values[kRows * kTile<T>];
  for (int64_t step = 0, k = p.begin; k < p.end; ++step, k += kDepth) {
    const int64_t depth = p.end - k < kDepth ? p.end - k : kDepth;
    pack_panel(p.b, Places(p.b_columns, column, p.b_column), Places(p.b_steps, k, p.b_step), p.N - column, depth,
               kTile<T>, panel);
    for (int64_t block = first; block < last; ++block) {
      const int64_t row = block * s.block_rows, rows = p.M - row < s.block_rows ? p.M - row : s.block_rows;
      product_of<kRows>(s.block_rows, packed_block(p, s, step, block), panel, depth, values);
      write_block(values, rows, columns, p.sign, p.accumulate || k > 0, p.out + row * p.out_row + column, p.out_row);
    }
  }
}

template <typename T>
void mirror(T* s, int64_t row, int64_t rows, int64_t begin, int64_t end) {
  constexpr int64_t n = Lanes<T>::count;
  for (int64_t i = 0; i < rows; i += n) {
    for (int64_t j = begin; j < end; j += n) {
      if (i + n <= rows && j + n <= end) {
        Lanes<T> square[n];
#pragma GCC unroll 16
        for (int r = 0; r < n; ++r) square[r] = Lanes<T>::load(s + (i + r) * row + j);
        transpose<1>(square);
#pragma GCC unroll 16
        for (int r = 0; r < n; ++r) square[r].store(s + (j + r) * row + i);
        continue;
      }
      for (int64_t y = i; y < std::min(i + n, rows); ++y) {
        for (int64_t x = j; x < std::min(j + n, end); ++x) s[x * row + y] = s[y * row + x];
      }
    }
  }
}

template <typename T>
constexpr Loops<T> loops{sizes<T>, pack_block<T>, multiply<T>, mirror<T>};

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::row_pairs
