// Arguments of refine_upsample on CUDA as plain data, the same for CUDA and the tests. See docs/kernels/refine.md.
#pragma once

#include "../common/resize.h"
#include "../common/tensor_map.h"

namespace metricseg::refine {

template <typename T>
struct RefineParams {
  int64_t batch, channels;
  Axis y, x;   // h -> H, w -> W
  bool zeros;  // padding of samples outside: 0, or the border

  Map features;                                           // [B, C, h, w]
  Map offsets;                                            // [B, 2, H, W]
  Map neighbor_logits;                                    // [B, 9, H, W] or absent
  Map output;                                             // [B, C, H, W]: the output, or its gradient
  Map grad_features, grad_offsets, grad_neighbor_logits;  // or absent

  METRICSEG_HD int height() const { return static_cast<int>(y.labels); }
  METRICSEG_HD int width() const { return static_cast<int>(x.labels); }
  METRICSEG_HD int64_t pixels() const { return y.labels * x.labels; }  // N, of an image
};

// Tiles of the pixels of an image, each row by row.
struct Tiling {
  int rows, columns;            // of a tile, powers of two
  int tile_rows, tile_columns;  // of the tiles

  METRICSEG_HD int64_t tiles() const { return int64_t(tile_rows) * tile_columns; }
  METRICSEG_HD int pixels() const { return rows * columns; }
};

// Tiles of `pixels` pixels and `columns` columns, or other sides where the map is narrower or lower.
inline Tiling make_tiling(int64_t height, int64_t width, int pixels, int columns) {
  while (columns / 2 >= width) columns /= 2;
  int rows = pixels / columns;
  while (rows / 2 >= height) {
    rows /= 2;
    columns *= 2;
  }
  return {rows, columns, static_cast<int>(ceil_div(height, rows)), static_cast<int>(ceil_div(width, columns))};
}

// How threads take the values of a pixel: lanes along pixels, a few channels each; or along channels, `width` lanes a
// pixel, with reads of 16 bytes if `vectors`.
struct Lanes {
  bool along_channels, vectors;
  int width;
};

inline bool has_vectors(const Map& map, int64_t channels) {
  const auto whole = [](int64_t bytes) { return bytes % 16 == 0; };
  return map.k == 1 && whole(reinterpret_cast<intptr_t>(map.data)) && whole(map.size * channels) &&
         whole(map.size * map.b) && whole(map.size * map.y) && whole(map.size * map.x);
}

template <typename T>
Lanes make_lanes(const RefineParams<T>& p) {
  Lanes lanes{p.features.k == 1 && p.channels > 1, has_vectors(p.features, p.channels), 1};
  lanes.vectors &= lanes.along_channels && has_vectors(p.output, p.channels);
  const int64_t units = lanes.vectors ? p.channels * p.features.size / 16 : p.channels;
  while (lanes.width < 32 && lanes.width < units) lanes.width *= 2;
  return lanes;
}

}  // namespace metricseg::refine
