// Arguments of the predict ops as plain data.
#pragma once

#include "../common/resize.h"
#include "../common/tensor_map.h"

namespace metricseg::predict {

// A map of logits on its way to the labels' size.
struct Source {
  Map map;
  Axis z, y, x;
  bool flipped;  // read mirrored
  double share;  // of the average

  // The column of the resized map that label column d reads.
  METRICSEG_HD int64_t column(int64_t d) const { return flipped ? x.labels - 1 - d : d; }
};

// The same for CUDA kernels, small enough for the parameters of a launch to hold kMostMaps of them.
struct MapSource {
  Map map;
  double share;
  int rows, columns;  // of cells
  bool flipped;
};

constexpr int kMostMaps = 32;

// What becomes of a predicted label: it is written, or counted against the target.
struct Params {
  int64_t batch, depth, height, width;  // depth: D of a volume, else 1
  int classes, maps;
  Map labels, confidence, entropy;  // [B, (D,) H, W], absent if not wanted
  Map target;                       // [B, (D,) H, W]
  int64_t ignore_index;
  int64_t* counts;  // [K, K]
  double* bad;      // [2] labels out of range, and the largest
};

struct CudaParams : Params {
  MapSource sources[kMostMaps];
  bool align_corners;

  METRICSEG_HD bool averages() const { return maps > 1 || confidence || entropy; }
  METRICSEG_HD Axis y(int m) const { return Axis::make(sources[m].rows, height, align_corners); }
  METRICSEG_HD Axis x(int m) const { return Axis::make(sources[m].columns, width, align_corners); }
};
static_assert(sizeof(CudaParams) <= 4000, "parameters of a launch");

}  // namespace metricseg::predict
