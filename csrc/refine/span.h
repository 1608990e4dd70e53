// The cells and weights that a pixel of refined upsampling is made of. Derivation: docs/kernels/refine.md.
#pragma once

#include "cpu_params.h"
#include "math.h"

namespace metricseg::refine {
namespace METRICSEG_SIMD {

// Cells of one axis that a position is made of, their weights, and the derivatives of these by the position.
template <typename T>
struct Span {
  int64_t cell[3];
  T weight[3], slope[3];
};

// position = g_0 label(p) + g_1 label(p + 1), each label = (1 - t) cell + t next cell. False for a NaN.
template <typename T>
METRICSEG_HD bool make_span(T position, int64_t labels, int64_t cells, const Sample<T>* of, bool zeros, Span<T>& span) {
  Between<T> found;
  if (!find_labels(position, labels, zeros, found)) return false;
  const Sample<T> a = of[found.low], b = of[found.high];
  combine(found.weight, a.cell == b.cell, a.fraction, b.fraction, span.weight);
  combine(found.slope, a.cell == b.cell, a.fraction, b.fraction, span.slope);
  for (int64_t i = 0; i < 3; ++i) span.cell[i] = a.cell + i < cells ? a.cell + i : cells - 1;
  return true;
}

// The cells of a pixel that count.
template <typename T>
struct Sum {
  bool finite;  // its position; others pass no gradient to it
  int count;    // -1 for a NaN
  int64_t cell[9];
  T weight[9], by_y[9], by_x[9];
};

// The cells of the pixel at (y, x). `slopes`: those count whose weight changes with the position, else those that have
// one.
template <typename T>
METRICSEG_HD Sum<T> locate(const CpuParams<T>& params, T y, T x, bool slopes) {
  Span<T> rows, columns;
  Sum<T> sum;
  sum.finite = y - y == T(0) && x - x == T(0);
  sum.count = -1;
  if (!make_span(y, params.height, params.cell_rows, params.rows, params.zeros, rows)) return sum;
  if (!make_span(x, params.width, params.cell_columns, params.columns, params.zeros, columns)) return sum;
  sum.count = 0;
  for (int r = 0; r < 3; ++r) {
    for (int c = 0; c < 3; ++c) {
      const T weight = rows.weight[r] * columns.weight[c];
      const T by_y = rows.slope[r] * columns.weight[c], by_x = rows.weight[r] * columns.slope[c];
      if (slopes ? by_y == T(0) && by_x == T(0) : weight == T(0)) continue;
      sum.cell[sum.count] = rows.cell[r] * params.cell_columns + columns.cell[c];
      sum.weight[sum.count] = weight;
      sum.by_y[sum.count] = by_y;
      sum.by_x[sum.count] = by_x;
      ++sum.count;
    }
  }
  return sum;
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::refine
