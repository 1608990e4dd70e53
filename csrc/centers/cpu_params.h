// Arguments of the CPU kernels as plain data, for the loops of each vector width (cpu_loops.h). Names as in the schemas
// of metricseg_kernels/centers/cpu.py.
#pragma once

#include "../common/by_type.h"
#include "../common/tensor_map.h"

namespace metricseg::centers {

constexpr int64_t kMostTile = 32;  // pixels of a tile, at most; see ../engines/pixel_rows/products.h
constexpr int64_t kPadRows = 16;   // whole blocks of rows end within so many rows

// Products of the pixels i of an image, x_i [C], with rows [K, C]: weights, or the gradients of class sums.
template <typename T>
struct CpuParams {
  int64_t channels, classes, width;
  int64_t panel;   // pixels processed together if sums over pixels are formed: a multiple of kMostTile
  bool one_set;    // one set of rows for all images
  bool direction;  // "cosine": products are those of x_i / |x_i|
  T square, eps;   // "euclidean": -square |x_i|^2 is added; least norm
  int64_t ignore_index;

  Map features;       // [B, C, h, w]
  Map logits;         // [B, K, h, w]: those to fill, or those of a soft assignment
  Map grad_logits;    // [B, K, h, w]: read by similarity_bwd, filled by soft_sums_bwd; or absent
  Map grad_features;  // [B, C, h, w] or absent
  Map labels;         // [B, h, w] or absent
  Map target_similarity, grad_target_similarity;  // [B, h, w] of T, or absent
  Map norms;                                      // [B, h, w] of T, or absent

  const T* rows;        // [1 or B] packed [K, C]
  const T* rows_t;      // [1 or B] packed [C, K]
  int64_t rows_stride;  // values per image
  int64_t rows_t_stride;
  const T* bias;       // [1 or B, K] or null
  const T* grad_mass;  // [B, K] or null

  METRICSEG_HD int64_t set(int64_t image) const { return one_set ? 0 : image; }
  // Two panels of tiles with their rows to whole blocks, a cache line between tiles; two tiles; the values per pixel.
  METRICSEG_HD int64_t scratch_values() const {
    const int64_t larger = channels > classes ? channels : classes;
    return panel * (channels + classes + 2 * kPadRows + 8) + 2 * kMostTile * (larger + kPadRows) + 4 * panel;
  }
};

// The pixels [begin, end) of an image, on one thread. sums [K, C] and mass [K] are added to; null if not wanted.
template <typename T>
using Loop = void (*)(const CpuParams<T>&, int64_t image, int64_t begin, int64_t end, T* scratch, T* sums, T* mass);

// a [M, J] with strides -> whole blocks of rows
template <typename T>
using Pack = void (*)(const T* a, int64_t row_stride, int64_t column_stride, int64_t M, int64_t J, T* out);

template <typename T>
struct Loops {
  Loop<T> similarity_fwd, similarity_bwd, soft_sums_fwd, soft_sums_bwd;
  Pack<T> pack;
};

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::centers
