// Weights of refined upsampling along an axis, the same on the CPU and in CUDA. Derivation: docs/kernels/refine.md.
#pragma once

#include <cmath>

#include "../common/macros.h"

namespace metricseg::refine {

// The labels before and after a position, their weights, and the derivatives of these by the position.
template <typename T>
struct Between {
  int64_t low, high;
  T weight[2], slope[2];
};

// False for a NaN.
template <typename T>
METRICSEG_HD bool find_labels(T position, int64_t labels, bool zeros, Between<T>& found) {
  if (!(position == position)) return false;
  const T end = static_cast<T>(labels - 1);
  T slope(1);
  bool outside = false;
  if (zeros) {
    outside = position < T(-1) || position >= end + T(1);
    if (outside) position = T(0);
  } else if (position <= T(0) || position >= end) {
    position = position <= T(0) ? T(0) : end;
    slope = T(0);
  }
  const T floor = std::floor(position), part = position - floor;
  const int64_t p = static_cast<int64_t>(floor);
  const bool low = p >= 0 && !outside, high = p + 1 < labels && !outside;
  found.low = p < 0 ? 0 : p;
  found.high = p + 1 < labels ? p + 1 : labels - 1;
  found.weight[0] = low ? T(1) - part : T(0);
  found.weight[1] = high ? part : T(0);
  found.slope[0] = low ? -slope : T(0);
  found.slope[1] = high ? slope : T(0);
  return true;
}

// Shares of three cells in f[0] label + f[1] next label, with the fractions t and u of these within their cells;
// `same`: both have the same cell.
template <typename T>
METRICSEG_HD void combine(const T (&f)[2], bool same, T t, T u, T (&shares)[3]) {
  shares[0] = f[0] * (T(1) - t) + (same ? f[1] * (T(1) - u) : T(0));
  shares[1] = f[0] * t + f[1] * (same ? u : T(1) - u);
  shares[2] = same ? T(0) : f[1] * u;
}

}  // namespace metricseg::refine
