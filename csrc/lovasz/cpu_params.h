// Arguments of the CPU kernels as plain data, for the loops of each vector width.
#pragma once

#include "../common/by_type.h"
#include "../engines/resized/cpu_params.h"
#include "params.h"

namespace metricseg::lovasz {

// Errors in a bin. Integers, so that no order of addition changes a bit.
struct Bin {
  int64_t count;
  int64_t rest;  // sum of e N - bin, times CpuParams::one
};

template <typename T>
struct CpuParams : Params<T> {
  resized::Slots<T> slots;
  double one;  // a power of two; all pixels in one bin do not leave int64

  METRICSEG_HD int64_t scratch_values() const {
    return walk_values(*this) + (this->table ? this->classes : 0) * block_pixels(*this) + 6 * block_pixels(*this);
  }
};

// Units [begin, end) of an image, or in backward of a call, on one thread. Forward: bins [K, 2, N] and totals [kTotals],
// zeros before; backward: null.
template <typename T>
using Worker = void (*)(const CpuParams<T>&, int64_t begin, int64_t end, T* scratch, Bin* bins, double* totals);

template <typename T>
struct Loops {
  int64_t lanes;  // of a vector
  Worker<T> run;
};

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::lovasz
