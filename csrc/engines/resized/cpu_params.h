// What a walk over label pixels needs beyond the arguments of a family, as plain data for each vector width.
#pragma once

#include "maps.h"

namespace metricseg::resized {

constexpr int kMaxLanes = 16;
constexpr int kMaxVectors = 16;  // vectors of pixels that are processed together
constexpr int kMaxRows = 4;      // label rows among them

// Position of the label columns between the cells. Every label column belongs to its nearest cell and blends it with
// one neighbor. The n-th labels of `lanes` consecutive cells form a *slot*, so that bilinear interpolation and its
// transpose are arithmetic on shifted vectors of cells: no gather, and no idle lanes at an even integer ratio.
template <typename T>
struct Slots {
  int64_t count;
  bool blend;             // false if the axis needs no interpolation
  const int32_t* column;  // [count] first cell
  const int32_t* x;       // [count, lanes] label column, -1 if the cell has no such label
  const T* neighbor;      // [count, lanes] weight of the neighbor, in [0, 1/2]
  const T* right;         // [count, lanes] 1 if the neighbor is the right-hand one, 0 the left-hand, -1 no label
};

// A row of logits in the memory of a worker, with space for a vector on either side.
METRICSEG_HD int64_t row_stride(const Maps& maps) {
  return (maps.x.cells + kMaxLanes - 1) / kMaxLanes * kMaxLanes + 2 * kMaxLanes;
}

// Vectors of pixels in work at a time, sized so that their logits fit in L2.
METRICSEG_HD int block_vectors(const Maps& maps) {
  const int64_t fit = (int64_t{256} << 10) / (int64_t{maps.classes} * kMaxLanes * sizeof(float));
  return static_cast<int>(fit < kMaxRows ? kMaxRows : fit > kMaxVectors ? kMaxVectors : fit);
}

METRICSEG_HD int64_t block_pixels(const Maps& maps) { return int64_t{block_vectors(maps)} * kMaxLanes; }

// Whether there is nothing to interpolate in an image, or in a volume that `collapse` has made one row of.
METRICSEG_HD bool direct(const Maps& maps) { return maps.flat() && maps.identity(); }

// Units of work of an image: rows of logits, or tiles of pixels if nothing is interpolated; of a volume: its planes.
METRICSEG_HD int64_t units_per_image(const Maps& maps, int64_t lanes) {
  if (!maps.flat()) return maps.z.cells;
  const int64_t tile = block_vectors(maps) * lanes;
  return maps.y.cells * (direct(maps) ? (maps.x.cells + tile - 1) / tile : 1);
}

// A plane of gradient in the memory of a worker, [h, K, w].
METRICSEG_HD int64_t plane_values(const Maps& maps) { return maps.y.cells * maps.classes * maps.x.cells; }

// Values that the walk takes of a worker's memory.
METRICSEG_HD int64_t walk_values(const Maps& maps) {
  const int64_t rows = direct(maps) ? 0 : 4 * maps.classes * row_stride(maps);
  const int64_t planes = maps.z.identity() ? 0 : row_stride(maps) + (maps.grad ? 2 * plane_values(maps) : 0);
  return rows + planes + maps.classes * block_pixels(maps);
}

}  // namespace metricseg::resized
