// Arguments of region_fwd_kernel and region_bwd_kernel as plain data. Names are those of the schemas in
// metricseg_kernels/region/cpu.py.
#pragma once

#include "../common/resize.h"
#include "../common/tensor_map.h"

namespace metricseg::region {

template <typename T>
struct Params {
  int64_t batch;
  int classes;
  Axis y, x;        // h -> H, w -> W
  Map input;        // [B, K, h, w]
  Map target;       // labels [B, H, W], or soft [B, K, H, W]
  const T* weight;  // [K] of the pixel loss, or null
  T gamma, label_smoothing;
  int64_t ignore_index;
  bool softmax, pixel_loss;
  bool per_image;           // sums of every image, S = B; else S = 1
  double* sums;             // [S, K, 3] I, P, Y
  double* loss;             // [] sum of the pixel loss
  double* totals;           // [S, kTotals]
  const double* grad_sums;  // [S, K, 3]
  const double* grad_loss;  // []
  Map grad;                 // [B, K, h, w] in the dtype of input, or absent

  METRICSEG_HD bool dense() const { return is_floating(target.type); }
  METRICSEG_HD bool identity() const { return y.identity() && x.identity(); }
  METRICSEG_HD int64_t pixels() const { return batch * y.labels * x.labels; }
  // Labels of a single class are a mask: 0 and 1.
  METRICSEG_HD int label_classes() const { return classes == 1 ? 2 : classes; }
};

constexpr int kSums = 3;    // I, P, Y of a class
constexpr int kTotals = 3;  // valid pixels, labels out of range, the largest such label

// Sums of a share of the pixels: [K, kSums] I, P, Y, then these.
enum Extra { kLoss, kValid, kBad, kBadLabel, kExtras };

}  // namespace metricseg::region
