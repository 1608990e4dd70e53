// Arguments of distill_kernel as plain data. Names are those of the schema in metricseg_kernels/distill/op.py.
#pragma once

#include "../engines/resized/maps.h"

namespace metricseg::distill {

// With p of the map `input`, which gets the gradient, and q of the other: KL(q || p), KL(p || q), Jensen-Shannon.
enum class Kind : int64_t { kl, reverse_kl, js };

template <typename T>
struct Params : resized::Maps {  // without a target every pixel is valid
  Axis other_y, other_x;         // h2 -> H, w2 -> W
  Map other;                     // [B, K, h2, w2]
  Map grad_loss;                 // of T: [B, H, W], [], or absent for 1
  T temperature;
  Kind kind;
  T* loss_sum;  // [] or null
  Map loss;     // of T, contiguous: [B, H, W], or absent
  T* divisor;   // [] or null: the number of valid pixels, at least 1, which divides loss_sum

  METRICSEG_HD bool other_identity() const { return other_y.identity() && other_x.identity(); }
};

// Sums over the pixels of one unit of work; the units are added in order.
struct Partial {
  double loss, valid;
};

}  // namespace metricseg::distill
