// A call of spherical k-means as plain data: cpu_kmeans.cpp hands it to the loops of each vector width (cpu_loops.h).
#pragma once

#include "../common/by_type.h"
#include "../common/tensor_map.h"
#include "../engines/pixel_rows/resized.h"

namespace metricseg::segments {

constexpr int64_t kMostTile = 32;  // pixels of a tile, at most; see ../engines/pixel_rows/products.h
constexpr int64_t kPadRows = 16;   // whole blocks of rows, and whole vectors, end within so many values

template <typename T>
struct CpuParams {
  int64_t channels, height, width;                  // D, H, W
  int64_t clusters;                                 // K
  int64_t block_rows, block_columns, grid_columns;  // of the first clusters
  bool coordinated;                                 // the location is (Y / (H - 1), X / (W - 1))
  T eps;                                            // least norm

  Map embeddings;      // [B, D, h, w]
  Resized<T> resized;  // of the embeddings to H x W; absent if the sizes are the same
  Map location;        // [B, 2, H, W] or absent
  Map valid;           // [B, H, W] of bytes, or absent
  Map init;            // [B, H, W] or absent
  Map ids;             // [B, H, W] of int64

  METRICSEG_HD int64_t dims() const { return channels + (coordinated || location ? 2 : 0); }  // J
  // Values from the sums of a cluster to those of the next, J to whole vectors.
  METRICSEG_HD int64_t stride() const { return (dims() + kPadRows - 1) / kPadRows * kPadRows; }
  // Of all clusters, and of the pixels that are in none.
  METRICSEG_HD int64_t sums_values() const { return (clusters + 1) * stride(); }
  METRICSEG_HD int64_t scratch_values() const { return (stride() + clusters + kPadRows) * kMostTile + sums_values(); }
};

// The clusters of an image that have a pixel, in order, and their centers.
template <typename T>
struct Live {
  const T* packed;          // [count, J] in blocks of rows
  const int32_t* clusters;  // [count]
  int64_t count;
};

// The pixels [begin, end) of an image, on one thread, joined to the nearest of the `live` centers, or to their first
// clusters if `live` is null. sums [K + 1, stride] and members [K + 1] are added to, or null; ids are written if `last`.
template <typename T>
using Assign = void (*)(const CpuParams<T>&, const Live<T>* live, int64_t image, int64_t begin, int64_t end, T* scratch,
                        T* sums, int64_t* members, bool last);

// a [M, J] with strides -> whole blocks of rows
template <typename T>
using Pack = void (*)(const T* a, int64_t row_stride, int64_t column_stride, int64_t M, int64_t J, T* out);

template <typename T>
struct Loops {
  Assign<T> assign;
  Pack<T> pack;
};

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::segments
