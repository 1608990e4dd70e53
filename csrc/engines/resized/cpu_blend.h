// Bilinear interpolation of the pixels of one vector of label columns, in label rows that lie between the same two rows
// of cells. A column reads the blended cells of one row: of(cells) -> a vector of label columns; `first` is its first
// cell.
#pragma once

#include "../../common/simd/lanes.h"
#include "cpu_params.h"

namespace metricseg::resized {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

// A slot: shifted vectors of cells, without a gather.
template <typename T>
struct SlotColumn {
  using V = Lanes<T>;

  int64_t first;
  bool blend;
  V side, rest;
  Mask<T> right, used;

  METRICSEG_HD SlotColumn(const Slots<T>& slots, int64_t slot)
      : first(slots.column[slot]), blend(slots.blend), side(V::load(slots.neighbor + slot * V::count)) {
    const V place = V::load(slots.right + slot * V::count), zero(T(0));
    rest = V(T(1)) - side;
    right = place > zero;
    used = place >= zero;
  }

  // (1 - f) c + f n, as F.interpolate has it: n - c could be inf - inf, or overflow. Idle lanes hold 0: the gradient of
  // a NaN in them would reach their cells.
  METRICSEG_HD V of(const T* cells) const {
    const V center = V::load(cells);
    if (!blend) return center;
    return select(used, rest * center + side * select(right, V::load(cells + 1), V::load(cells - 1)), V(T(0)));
  }
};

// out [K, P, N] and their maximum over K, of R label rows that are consecutive vectors. a, b: the rows of cells
// [K, stride] above and below, at the column's first cell; lower: weights of b.
template <int R, typename T, typename Column>
METRICSEG_HD void blend(const Column& column, const T* a, const T* b, int64_t K, int64_t stride, bool blend_rows,
                        const T* lower, int P, T* out, T* max_out) {
  using V = Lanes<T>;
  constexpr int N = V::count;
  V fraction[R], rest[R], m[R];
  for (int r = 0; r < R; ++r) {
    fraction[r] = V(lower[r]);
    rest[r] = V(T(1)) - fraction[r];
    m[r] = V(-std::numeric_limits<T>::infinity());
  }
  for (int64_t k = 0; k < K; ++k, a += stride, b += stride, out += P * N) {
    const V upper = column.of(a), under = column.of(b);
    for (int r = 0; r < R; ++r) {
      const V value = blend_rows ? rest[r] * upper + fraction[r] * under : upper;
      value.store(out + r * N);
      m[r] = max(value, m[r]);
    }
  }
  for (int r = 0; r < R; ++r) m[r].store(max_out + r * N);
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::resized
