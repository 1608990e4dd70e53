// Tiles [C, kTile] of pixels of a bilinear resizing, interpolated on the way out of the map [B, C, y, x].
#pragma once

#include "resized.h"
#include "tiles.h"

namespace metricseg {
namespace METRICSEG_SIMD {

// tile [C, kTile] = the pixels [first, first + n) of the resized map, zeros beyond n. width is that of the result.
template <typename T>
void load_resized_tile(const Map& map, const Resized<T>& resized, int64_t image, int64_t width, int64_t first,
                       int64_t n, int64_t channels, T* tile) {
  constexpr int N = kTile<T>;
  int64_t at[4][N] = {};  // elements from the first of a channel
  T weight[4][N] = {};
  for (int64_t i = 0, y = first / width, x = first % width; i < n; ++i) {
    const Sample<T>&row = resized.rows[y], &column = resized.columns[x];
    for (int corner = 0; corner < 4; ++corner) {
      const bool low = corner / 2, right = corner % 2;
      at[corner][i] = (low ? row.next : row.cell) * map.y + (right ? column.next : column.cell) * map.x;
      weight[corner][i] =
          (low ? row.fraction : T(1) - row.fraction) * (right ? column.fraction : T(1) - column.fraction);
    }
    if (++x == width) x = 0, ++y;
  }
  with_storage<T>(map.type, [&](auto* stored) {
    const auto* p = reinterpret_cast<decltype(stored)>(map.at(image, 0, 0, 0));
    for (int64_t c = 0; c < channels; ++c, p += map.k, tile += N) {
      for (int i = 0; i < N; ++i) tile[i] = T(0);
      for (int64_t i = 0; i < n; ++i) {
        tile[i] = (weight[0][i] * widen(p[at[0][i]]) + weight[1][i] * widen(p[at[1][i]])) +
                  (weight[2][i] * widen(p[at[2][i]]) + weight[3][i] * widen(p[at[3][i]]));
      }
    }
  });
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg
