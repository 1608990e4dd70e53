// What every op over interpolated logits is given, as plain data for the CPU, CUDA and the tests.
#pragma once

#include "../../common/resize.h"
#include "../../common/tensor_map.h"

namespace metricseg::resized {

struct Maps {
  int64_t batch;
  int classes;
  Axis z = Axis::make(1, 1, false);  // d -> D of a volume
  Axis y, x;                         // h -> H, w -> W
  Map input;                         // [B, K, (d,) h, w]
  Map target;                        // labels [B, (D,) H, W], or dense [B, K, (D,) H, W]
  int64_t ignore_index;
  Map grad;  // as input, in its dtype, or absent

  METRICSEG_HD bool dense() const { return is_floating(target.type); }
  METRICSEG_HD bool identity() const { return y.identity() && x.identity(); }
  METRICSEG_HD bool flat() const { return z.cells == 1 && z.labels == 1; }
  METRICSEG_HD int64_t pixels() const { return batch * z.labels * y.labels * x.labels; }
};

}  // namespace metricseg::resized
