// Arguments of focal_kernel and sigmoid_focal_kernel as plain data, the same for the CPU, CUDA and the tests. Names are
// those of the schemas in metricseg_kernels/focal/op.py.
#pragma once

#include "../common/resize.h"
#include "../common/tensor_map.h"

namespace metricseg::focal {

template <typename T>
struct Params {
  int64_t batch;
  int classes;
  Axis y, x;            // h -> H, w -> W
  Map input;            // [B, K, h, w]
  Map target;           // labels [B, H, W], or dense [B, K, H, W]
  const T* weight;      // [K] or null
  const T* keep_above;  // [] or null
  Map grad_loss;        // of T: [B, H, W], [B, K, H, W], [], or absent for 1
  T gamma, label_smoothing, alpha;
  int64_t ignore_index;
  T ignored_loss;  // of pixels without a class, in the loss map
  T* loss_sum;     // [] or null
  Map loss;        // of T, contiguous: [B, H, W] or [B, K, H, W], or absent
  double* totals;  // [kTotals] or null
  T* divisor;      // [] or null: the valid pixels, or their weights, or 1 for 0; divides loss_sum
  bool by_weight;
  Map argmax;  // of int32, contiguous: [B, H, W], or absent
  Map grad;    // [B, K, h, w] in the dtype of input, or absent

  METRICSEG_HD bool dense() const { return is_floating(target.type); }
  METRICSEG_HD bool identity() const { return y.identity() && x.identity(); }
  METRICSEG_HD int64_t pixels() const { return batch * y.labels * x.labels; }
};

// Sums over the pixels of one unit of work; the units are added in order. Without `loss` they are the op's `totals`.
struct Partial {
  double loss, valid, weight, correct, bad, bad_label;  // bad: labels out of range; bad_label: the largest of them
};

constexpr int kTotals = 5;

}  // namespace metricseg::focal
