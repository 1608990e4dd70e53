// How a call of spherical k-means is cut: into parts of an image, chunks of channels and blocks of clusters; and what a
// thread block keeps in shared memory. A function of the shapes alone, so the bits do not depend on the device.
#pragma once

#include <algorithm>

#include "params.h"

namespace metricseg::segments {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kPerThread = 2;                      // pixels
constexpr int kTile = kThreads * kPerThread;       // pixels of a tile
constexpr int kStride = kTile + 1;                 // from a row of a tile to the next: lanes along either hit all banks
constexpr int kColumns = 64;                       // of sums that a warp forms together
constexpr int64_t kTileBytes = 48 << 10;           // at most, of a chunk of channels
constexpr int64_t kSumsBytes = 28 << 10;           // at most, of sums in shared memory
constexpr int64_t kMostParts = 64, kBlocks = 512;  // of an image; of the grid, about

// Clusters whose products a thread forms together: twice as many values in registers.
template <typename T>
constexpr int kClusters = sizeof(T) == 8 ? 16 : 32;

struct KmeansLayout {
  int rows, chunks;          // of a chunk; chunks of the J rows of a tile
  int blocks;                // of kClusters clusters
  int tiles, parts, copies;  // of an image; of its pixels; of the sums of a part
  bool shared_sums;          // else in global memory, in L2
  int shares;                // of the sums of an image, in global memory
  int64_t share_values;      // K (J + 1): sums, and the number of pixels
  int64_t centers_at, sums_at, weights_at, clusters_at, places_at,
      steps_at;  // bytes in shared memory; the tile is at 0
  int64_t smem;
};

// From the first of the four cells of an interpolated pixel to the others, and the shares of the second row and column.
template <typename T>
struct Steps {
  int64_t down, right;
  T fy, fx;
};

template <typename T>
KmeansLayout make_kmeans_layout(const KmeansParams<T>& p) {
  constexpr int64_t kSize = sizeof(T);
  KmeansLayout l{};
  const int64_t J = p.dims(), most = kTileBytes / (kStride * kSize);
  l.chunks = static_cast<int>(std::max<int64_t>(ceil_div(J, most), 1));
  l.rows = static_cast<int>(std::max<int64_t>(ceil_div(J, l.chunks), 1));
  l.blocks = static_cast<int>(ceil_div(p.clusters, kClusters<T>));
  l.tiles = static_cast<int>(ceil_div(p.pixels(), kTile));
  l.share_values = p.clusters * (J + 1);
  // parts share the work of an image, but their sums take no more memory than the embeddings
  const auto fit = [&](int64_t each) {
    return std::max<int64_t>(int64_t(p.pixels()) * J / std::max<int64_t>(each * l.share_values, 1), 1);
  };
  l.parts = static_cast<int>(
      std::min({kMostParts, ceil_div(kBlocks, std::max<int64_t>(p.batch, 1)), std::max<int64_t>(l.tiles, 1), fit(1)}));
  l.shared_sums = l.share_values * kSize <= kSumsBytes;
  l.copies = kWarps;  // a warp each; they share one if there is no room
  while (l.copies > 1 && (l.shared_sums ? l.copies * l.share_values * kSize > kSumsBytes : fit(l.parts) < l.copies)) {
    l.copies /= 2;
  }
  l.shares = l.shared_sums ? l.parts : l.parts * l.copies;
  const auto place = [&](int64_t bytes) {
    const int64_t at = l.smem;
    l.smem += ceil_div(bytes, 16) * 16;
    return at;
  };
  place(l.rows * kStride * kSize);
  l.centers_at = place(l.rows * kClusters<T> * kSize);
  l.sums_at = place(l.shared_sums ? l.copies * l.share_values * kSize : 0);
  l.weights_at = place(kTile * kSize);
  l.clusters_at = place(kTile * sizeof(int));
  l.places_at = place(kTile * sizeof(int64_t));
  l.steps_at = place(p.resized() ? kTile * sizeof(Steps<T>) : 0);
  return l;
}

}  // namespace metricseg::segments
