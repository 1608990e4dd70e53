// A call of refine_upsample as plain data: cpu.cpp hands it to the loops of each vector width (cpu_loops.h).
#pragma once

#include "../common/by_type.h"
#include "../common/tensor_map.h"
#include "../engines/pixel_rows/resized.h"

namespace metricseg::refine {

constexpr int64_t kPad = 16;    // whole vectors end within so many values
constexpr int64_t kBlock = 64;  // channels that a tile of pixels takes at once
constexpr int64_t kBand = 16;   // rows of offsets whose gradient one thread adds up

template <typename T>
struct CpuParams {
  int64_t channels, cell_rows, cell_columns, height, width;  // C, h, w, H, W
  bool zeros;                                                // padding of samples outside: 0, or the border
  const Sample<T>* rows;                                     // [H]
  const Sample<T>* columns;                                  // [W]

  Map features;         // [B, C, h, w]
  Map offsets;          // [B, 2, H, W]
  Map neighbor_logits;  // [B, 9, H, W] or absent
  Map output;           // [B, C, H, W]: the output, or its gradient
  Map grad_features, grad_offsets, grad_neighbor_logits;

  T* panel;          // [B, h w, packed()]: features, channels last
  T* displacements;  // [B, 2, H, W]: the gradient of each pixel's displacement

  METRICSEG_HD int64_t cells() const { return cell_rows * cell_columns; }
  METRICSEG_HD int64_t packed() const { return ceil_div(channels, kPad) * kPad; }
  METRICSEG_HD T* panel_of(int64_t image) const { return panel + image * cells() * packed(); }
  METRICSEG_HD T* displacement_of(int64_t image, int64_t axis, int64_t row) const {
    return displacements + ((image * 2 + axis) * height + row) * width;
  }
  // Values from a row of pixels in a buffer to the next, with a neighbor on each side.
  METRICSEG_HD int64_t stride() const { return ceil_div(width + 2, kPad) * kPad + kPad; }
  // Rows of neighbor weights, offsets, displacements and sums.
  METRICSEG_HD int64_t scratch_values() const { return (9 + 6 + 2 + 2 * kBand) * stride(); }
};

// On one thread: rows [begin, end) of an image, of cells or of pixels, or its channels.
template <typename T>
using Worker = void (*)(const CpuParams<T>&, int64_t image, int64_t begin, int64_t end, T* scratch);

template <typename T>
struct Loops {
  Worker<T> pack;      // rows of cells: panel
  Worker<T> upsample;  // rows of pixels: output
  Worker<T> displace;  // rows of pixels: displacements, from the gradient of the output
  Worker<T> spread;    // channels, in steps of kPad: grad_features
  Worker<T> weigh;     // rows of pixels: grad_offsets and grad_neighbor_logits, from displacements
};

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::refine
