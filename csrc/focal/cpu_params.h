// Arguments of the CPU kernels as plain data, for the row loops of each vector width.
#pragma once

#include "../common/by_type.h"
#include "math.h"
#include "params.h"

namespace metricseg::focal {

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

template <typename T>
struct CpuParams : Params<T> {
  T grad_scale;  // replaces grad_loss if that is absent
  SoftmaxParams<T> softmax;
  Slots<T> slots;
  int64_t units;      // of work: rows of logits, or tiles of pixels if nothing is interpolated
  Partial* partials;  // [units]

  // A row of logits in the memory of a worker, with space for a vector on either side.
  METRICSEG_HD int64_t row_stride() const {
    return (this->x.cells + kMaxLanes - 1) / kMaxLanes * kMaxLanes + 2 * kMaxLanes;
  }
  // Vectors of pixels in work at a time, sized so that their logits fit in L2.
  METRICSEG_HD int vectors() const {
    const int64_t fit = (int64_t{256} << 10) / (int64_t{this->classes} * kMaxLanes * sizeof(float));
    return static_cast<int>(fit < kMaxRows ? kMaxRows : fit > kMaxVectors ? kMaxVectors : fit);
  }
  METRICSEG_HD int64_t scratch_values() const {
    const int64_t pixels = int64_t{vectors()} * kMaxLanes;
    const int64_t rows_held = this->identity() ? 0 : 4 * this->classes * row_stride();
    return rows_held + this->classes * pixels + 12 * pixels;
  }
};

// Units [begin, end) of a call, on one thread.
template <typename T>
using Worker = void (*)(const CpuParams<T>&, int64_t begin, int64_t end, T* scratch);

// The loops of one vector width.
template <typename T>
struct Loops {
  int64_t lanes;  // of a vector
  Worker<T> softmax, sigmoid;
};

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::focal
