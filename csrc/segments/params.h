// Arguments of the segments kernels on CUDA as plain data, the same for CUDA and the tests. Names are those of the
// schemas in metricseg_kernels/segments/cpu.py.
#pragma once

#include "../common/resize.h"
#include "../common/tensor_map.h"

namespace metricseg::segments {

template <typename T>
struct KmeansParams {
  int64_t batch;
  int channels, clusters;                       // D, K
  Axis y, x;                                    // h -> H, w -> W
  int block_rows, block_columns, grid_columns;  // of the first clusters
  bool coordinated;                             // the location is (Y / (H - 1), X / (W - 1))
  T eps;                                        // least norm

  Map embeddings;  // [B, D, h, w]
  Map location;    // [B, 2, H, W] or absent
  Map valid;       // [B, H, W] of bytes, or absent
  Map init;        // [B, H, W] or absent
  int64_t* ids;    // [B, H, W]

  METRICSEG_HD int pixels() const { return static_cast<int>(y.labels * x.labels); }  // N, of an image
  METRICSEG_HD bool resized() const { return !y.identity() || !x.identity(); }
  METRICSEG_HD bool located() const { return coordinated || location; }
  METRICSEG_HD int dims() const { return channels + (located() ? 2 : 0); }  // J
};

struct SplitParams {
  Map ids, labels;  // [B, h, w]
  int64_t batch, height, width, num_classes, ignore_index, capacity;
  int64_t* dense;  // [B, h, w]
  int64_t* found;  // [capacity]
  int64_t* count;  // []

  METRICSEG_HD int64_t area() const { return height * width; }
};

}  // namespace metricseg::segments
