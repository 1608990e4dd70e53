// Arguments of focal_kernel and sigmoid_focal_kernel as plain data, the same for the CPU, CUDA and the tests. Names are
// those of the schemas in metricseg_kernels/focal/op.py.
#pragma once

#include "../engines/resized/maps.h"

namespace metricseg::focal {

template <typename T>
struct Params : resized::Maps {
  const T* weight;      // [K] or null
  const T* keep_above;  // [] or null
  Map grad_loss;        // of T: [B, H, W], [B, K, H, W], [], or absent for 1
  T gamma, label_smoothing, alpha;
  T ignored_loss;  // of pixels without a class, in the loss map
  T* loss_sum;     // [] or null
  Map loss;        // of T, contiguous: [B, H, W] or [B, K, H, W], or absent
  double* totals;  // [kTotals] or null
  T* divisor;      // [] or null: the valid pixels, or their weights, or 1 for 0; divides loss_sum
  bool by_weight;
  Map argmax;  // of int32, contiguous: [B, H, W], or absent
};

// Sums over the pixels of one unit of work; the units are added in order. Without `loss` they are the op's `totals`.
struct Partial {
  double loss, valid, weight, correct, bad, bad_label;  // bad: labels out of range; bad_label: the largest of them
};

constexpr int kTotals = 5;

}  // namespace metricseg::focal
