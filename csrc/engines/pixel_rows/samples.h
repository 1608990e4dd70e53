// The samples of one axis of a bilinear resizing, for the host.
#pragma once

#include <vector>

#include "../../common/resize.h"
#include "resized.h"

namespace metricseg {

// Cells and fractions, [labels].
template <typename T>
std::vector<Sample<T>> samples(int64_t cells, int64_t labels, bool align_corners) {
  const Axis axis = Axis::make(cells, labels, align_corners);
  std::vector<Sample<T>> found(labels);
  for (int64_t d = 0; d < labels; ++d) {
    const int64_t cell = axis.cell(d);
    found[d] = {cell, axis.identity() ? cell : axis.next(cell), axis.fraction<T>(d)};
  }
  return found;
}

}  // namespace metricseg
