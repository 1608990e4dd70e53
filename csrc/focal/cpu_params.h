// Arguments of the CPU kernels as plain data, for the row loops of each vector width.
#pragma once

#include "../common/by_type.h"
#include "../engines/resized/cpu_params.h"
#include "math.h"
#include "params.h"

namespace metricseg::focal {

template <typename T>
struct CpuParams : Params<T> {
  resized::Slots<T> slots;
  T grad_scale;  // replaces grad_loss if that is absent
  SoftmaxParams<T> softmax;
  Partial* partials;  // [units]

  METRICSEG_HD int64_t scratch_values() const { return walk_values(*this) + 12 * block_pixels(*this); }
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
