// Arguments of the CPU kernels as plain data, for the loops of each vector width.
#pragma once

#include <type_traits>

#include "../common/by_type.h"
#include "../engines/resized/cpu_params.h"
#include "params.h"

namespace metricseg::distill {

// As many bits as T has: lanes of an index.
template <typename T>
using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// Cells of the other map under each vector of label columns that the walk makes: its slots, or consecutive columns if
// the walk does not interpolate. Lane i of vector v blends the cells first[v] + center and first[v] + neighbor.
template <typename T>
struct Columns {
  const int64_t* first;              // [vectors]
  const Index<T>*center, *neighbor;  // [vectors, lanes]; 0 for an idle lane
  const T* side;                     // [vectors, lanes] weight of the neighbor, in [0, 1/2]
  bool blend;                        // false if the axis needs no interpolation
  bool near;                         // no vector reads more cells than two vectors hold
};

constexpr int kPixelArrays = 6;  // of a block, in Pixels

template <typename T>
struct CpuParams : Params<T> {
  resized::Slots<T> slots;
  Columns<T> columns;  // of the other map, unless both maps have the same slots
  bool same_slots;     // the walk makes slots, and both maps have as many cells along x
  T grad_scale;        // replaces grad_loss if that is absent
  Partial* partials;   // [units]

  METRICSEG_HD bool copies() const { return this->identity() && this->other_identity(); }
  // A row of the other map in the memory of a worker, with space for a vector before it and two behind it.
  METRICSEG_HD int64_t other_stride() const {
    constexpr int64_t kMost = resized::kMaxLanes;
    return (this->other_x.cells + kMost - 1) / kMost * kMost + 3 * kMost;
  }
  // Rows that are held: a power of 2, so that the label rows of a block read each row once if the other map is at most
  // twice as high as the labels. Four label rows lie in three intervals of an axis that grows by 3/2 or more.
  METRICSEG_HD int64_t other_rows() const { return 2 * this->other_y.labels >= 3 * this->other_y.cells ? 4 : 8; }
  METRICSEG_HD int64_t other_values() const { return copies() ? 0 : other_rows() * this->classes * other_stride(); }
  METRICSEG_HD int64_t scratch_values() const {
    return walk_values(*this) + other_values() + (this->classes + kPixelArrays) * block_pixels(*this);
  }
};

// Units [begin, end) of a call, on one thread.
template <typename T>
using Worker = void (*)(const CpuParams<T>&, int64_t begin, int64_t end, T* scratch);

template <typename T>
struct Loops {
  int64_t lanes;  // of a vector
  Worker<T> kl, reverse_kl, js;
};

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::distill
