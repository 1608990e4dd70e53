// Arguments of the anchors kernels as plain data, the same for the CPU, CUDA and the tests. Names are those of the
// schemas in metricseg_kernels/anchors.
#pragma once

#include "../common/tensor_map.h"
#include "rules.h"

namespace metricseg::anchors {

struct SampleParams {
  Map labels;              // [B, h, w]
  Map predictions, first;  // [B, h, w] or absent; first is uint8
  int64_t batch, height, width, num_classes, ignore_index, ignore_label;
  const int64_t* seed;  // []
  Rules rules;
  double deviations;  // of slack in the limits: speed, not results
  int64_t* index;     // [S]
  int64_t* sampled;   // [S]
  int64_t* count;     // []
  int64_t* bad;       // [2]: how many labels are out of range, the largest of them

  METRICSEG_HD int64_t pixels() const { return batch * height * width; }
  // Whether a pixel of class `label` is in group 1: neither does its prediction differ, nor does `first` name it.
  METRICSEG_HD bool second(int64_t image, int64_t y, int64_t x, int64_t label) const {
    if (!predictions && !first) return false;
    return (!predictions || label_at(predictions, image, y, x) == label) && (!first || *first.at(image, 0, y, x) == 0);
  }
  METRICSEG_HD int64_t cells() const { return 2 * batch * num_classes; }
  METRICSEG_HD int64_t most_cells() const { return cells() < rules.max_samples ? cells() : rules.max_samples; }
};

template <typename T>
struct GatherParams {
  Map features;  // [B, C, h, w]: features, or their gradient
  int64_t batch, channels, height, width, count;
  const int64_t* index;  // [S]
  Map rows;              // [S, C]
  T* norms;              // [S]
  Map grad_rows;         // [S, C]; backward only
  const int64_t* order;  // [S] the rows that sorted indices belong to; backward only
  bool normalize;
  T eps;

  METRICSEG_HD bool known(int64_t pixel) const { return pixel >= 0 && pixel < batch * height * width; }
  METRICSEG_HD int64_t bytes() const { return batch * channels * height * width * features.size; }
  // In elements, of channel 0.
  METRICSEG_HD int64_t offset(int64_t pixel) const {
    return features.offset(pixel / width / height, 0, pixel / width % height, pixel % width);
  }
};

}  // namespace metricseg::anchors
