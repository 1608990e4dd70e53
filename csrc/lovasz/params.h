// Arguments of lovasz_fwd_kernel and lovasz_bwd_kernel as plain data. Names are those of the schemas in
// metricseg_kernels/lovasz/cpu.py.
#pragma once

#include "../engines/resized/maps.h"

namespace metricseg::lovasz {

template <typename T>
struct Params : resized::Maps {
  int bins;        // N, of equal width
  bool per_image;  // bins of every image, S = B; else S = 1
  double* counts;  // [S, K, 2, N] errors of others and of own pixels
  double* sums;    // [S, K, 2, N]
  double* totals;  // [S, kTotals]
  const T* table;  // [S, K, 2, N] gradients of the sums

  METRICSEG_HD int64_t image_bins() const { return int64_t{classes} * 2 * bins; }
};

// Valid pixels, labels out of range, the largest such label, and 0 or, if an error is NaN, NaN.
enum Total { kValid, kBad, kBadLabel, kUndefined, kTotals };

}  // namespace metricseg::lovasz
