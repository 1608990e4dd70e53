// Arguments of the CPU kernels as plain data, for the loops of each vector width.
#pragma once

#include "../common/by_type.h"
#include "../engines/resized/cpu_params.h"
#include "../engines/resized/softmax_pixel.h"
#include "params.h"

namespace metricseg::region {

template <typename T>
struct CpuParams : Params<T> {
  resized::Slots<T> slots;
  resized::SoftmaxParams<T> pixel;
  const T *hit_grad, *mass_grad;  // [S, K] gradients of I and P
  T loss_grad;                    // gradient of the pixel loss

  METRICSEG_HD int64_t sums_of_lanes() const { return (kSums * this->classes + 2) * resized::kMaxLanes; }
  METRICSEG_HD int64_t scratch_values() const {
    constexpr int64_t kPerSum = sizeof(double) / sizeof(T);
    return walk_values(*this) + kPerSum * sums_of_lanes() + 11 * block_pixels(*this);
  }
};

// Units [begin, end) of a call, on one thread. Forward: out [K kSums + kExtras]; backward: null.
template <typename T>
using Worker = void (*)(const CpuParams<T>&, int64_t begin, int64_t end, T* scratch, double* out);

template <typename T>
struct Loops {
  int64_t lanes;  // of a vector
  Worker<T> softmax_labels, softmax_dense, sigmoid;
};

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::region
