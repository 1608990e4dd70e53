// What every op over interpolated logits is given, as plain data for the CPU, CUDA and the tests.
#pragma once

#include "../../common/resize.h"
#include "../../common/tensor_map.h"

namespace metricseg::resized {

struct Maps {
  int64_t batch;
  int classes;
  Axis y, x;   // h -> H, w -> W
  Map input;   // [B, K, h, w]
  Map target;  // labels [B, H, W], or dense [B, K, H, W]
  int64_t ignore_index;
  Map grad;  // [B, K, h, w] in the dtype of input, or absent

  METRICSEG_HD bool dense() const { return is_floating(target.type); }
  METRICSEG_HD bool identity() const { return y.identity() && x.identity(); }
  METRICSEG_HD int64_t pixels() const { return batch * y.labels * x.labels; }
};

}  // namespace metricseg::resized
