// Interpolated logits of some classes at one pixel, straight from the cells of a map: four loads each, from L1 and L2.
#pragma once

#include <limits>
#include <type_traits>

#include "../common/cuda/reduce.cuh"
#include "../common/cuda/scalar.cuh"
#include "../common/resize.h"

namespace metricseg::distill {

// A pixel between cells of one axis: the nearer cell to 0, the step to the other one, and its weight. At ratio 1, and
// beyond the last cell, the step is 0, and halves of the same value make no NaN of an infinity.
template <typename T>
struct Between {
  int cell, step;
  T share;
};

// near: the cell of a label close before, in which the search begins; out: that of this label.
template <typename T>
__device__ __forceinline__ Between<T> between(const Axis& axis, int64_t label, int& near) {
  const int64_t numerator = axis.numerator(label);
  int64_t rest = numerator - near * axis.den;
  if (rest < 0 || rest >= 4 * axis.den) {
    near = static_cast<int>(axis.cell(label));
    rest = numerator - near * axis.den;
  }
  for (; rest >= axis.den; rest -= axis.den) ++near;
  const bool blends = !axis.identity() && near + 1 < axis.cells;
  return {near, blends, blends ? static_cast<T>(static_cast<int>(rest)) / static_cast<T>(axis.den) : T(0.5)};
}

// Classes [class0, class0 + KT); -inf if there is no such class. The last class is read in its place, so that no load
// waits for a branch. Row by row, so that fewer values wait in registers.
template <typename T, int KT>
__device__ __forceinline__ void load_classes(const Map& map, int64_t image, const Between<T>& row,
                                             const Between<T>& column, int class0, int classes, T (&z)[KT]) {
  const int64_t right = column.step * map.x, down = row.step * map.y;
  const int64_t first = map.offset(image, class0 < classes ? class0 : classes - 1, row.cell, column.cell);
  with_storage<T>(map, [&](auto* data) {
    const auto along = [&](int64_t offset, const auto& take) {
      const std::remove_pointer_t<decltype(data)>* at = data + offset;
      const int left = opaque(classes - class0);  // places of the row before are not kept in registers
#pragma unroll
      for (int k = 0; k < KT; ++k) {
        take(k, mix(widen<T>(at[0]), widen<T>(at[right]), column.share));
        at += k + 1 < left ? map.k : 0;
      }
    };
    along(first, [&](int k, T top) { z[k] = top; });
    along(first + down, [&](int k, T bottom) { z[k] = mix(z[k], bottom, row.share); });
  });
#pragma unroll
  for (int k = 0; k < KT; ++k) z[k] = class0 + k < classes ? z[k] : -std::numeric_limits<T>::infinity();
}

}  // namespace metricseg::distill
