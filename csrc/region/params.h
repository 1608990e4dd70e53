// Arguments of region_fwd_kernel and region_bwd_kernel as plain data. Names are those of the schemas in
// metricseg_kernels/region/cpu.py.
#pragma once

#include "../engines/resized/maps.h"

namespace metricseg::region {

template <typename T>
struct Params : resized::Maps {
  const T* weight;  // [K] of the pixel loss, or null
  T gamma, label_smoothing;
  bool softmax, pixel_loss;
  bool per_image;           // sums of every image, S = B; else S = 1
  double* sums;             // [S, K, 3] I, P, Y
  double* loss;             // [] sum of the pixel loss
  double* totals;           // [S, kTotals]
  const double* grad_sums;  // [S, K, 3]
  const double* grad_loss;  // []

  // Labels of a single class are a mask: 0 and 1.
  METRICSEG_HD int label_classes() const { return classes == 1 ? 2 : classes; }
};

constexpr int kSums = 3;    // I, P, Y of a class
constexpr int kTotals = 3;  // valid pixels, labels out of range, the largest such label

// Sums of a share of the pixels: [K, kSums] I, P, Y, then these.
enum Extra { kLoss, kValid, kBad, kBadLabel, kExtras };

}  // namespace metricseg::region
