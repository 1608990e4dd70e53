// What becomes of the labels of a block: they are stored, or counted against the target. Counts of a block are summed in
// shared memory if [K, K] fits; lanes of a warp with the same pair of classes, as neighbors mostly have, add once.
#pragma once

#include <limits>

#include "../common/cuda/reduce.cuh"
#include "../common/cuda/scalar.cuh"
#include "params.h"

namespace metricseg::predict {

using Count = unsigned long long;

// counts[key] += 1 for the keys >= 0 of all lanes.
template <typename T>
__device__ __forceinline__ void add_keys(T* counts, int64_t key) {
  unsigned left = __ballot_sync(kFullMask, key >= 0);
  while (left != 0) {
    const int leader = __ffs(left) - 1;
    const int64_t shown = __shfl_sync(kFullMask, key, leader);
    const unsigned same = __ballot_sync(kFullMask, key == shown);
    if (static_cast<int>(threadIdx.x % kWarp) == leader) atomicAdd(counts + shown, static_cast<T>(__popc(same)));
    left &= ~same;
  }
}

// to = max(to, value), where 0 is none: it is no label out of range.
__device__ __forceinline__ void atomic_largest(double* to, double value) {
  auto* const place = reinterpret_cast<Count*>(to);
  const Count mine = bits_as<Count>(value);
  Count found = atomicCAS(place, Count(0), mine);
  while (found != 0 && bits_as<double>(found) < value) {
    const Count before = found;
    found = atomicCAS(place, before, mine);
    if (found == before) return;
  }
}

class Sink {
  const CudaParams& p;
  unsigned* const shared;  // [K, K] of the block, or null
  double bad[2] = {0, -std::numeric_limits<double>::infinity()};

 public:
  __device__ __forceinline__ Sink(const CudaParams& p, unsigned* shared) : p(p), shared(shared) {
    if (shared == nullptr) return;
    for (int i = threadIdx.x; i < p.classes * p.classes; i += blockDim.x) shared[i] = 0;
    __syncthreads();
  }

  // The label of a pixel; all lanes come, those without a pixel too.
  __device__ __forceinline__ void take(int64_t image, int64_t y, int64_t x, bool inside, int label) {
    if (!p.counts) {
      if (inside) store((image * p.height + y) * p.width + x, label);
      return;
    }
    int64_t key = -1;
    if (inside) {
      const int64_t target = label_at(p.target, image, y, x);
      const int64_t found = class_of(target, p.classes, p.ignore_index);
      if (found >= 0) key = found * p.classes + label;
      if (found == kOutOfRange) {
        bad[0] += 1;
        bad[1] = fmax(bad[1], static_cast<double>(target));
      }
    }
    if (shared != nullptr) {
      add_keys(shared, key);
    } else {
      add_keys(reinterpret_cast<Count*>(p.counts), key);
    }
  }

  // Adds the block's counts to those of all.
  __device__ __forceinline__ void finish() {
    if (!p.counts) return;
    __syncthreads();
    for (int i = threadIdx.x; shared != nullptr && i < p.classes * p.classes; i += blockDim.x) {
      if (shared[i] != 0) atomicAdd(reinterpret_cast<Count*>(p.counts) + i, static_cast<Count>(shared[i]));
    }
    block_reduce(bad, [](int i, double a, double b) { return i == 0 ? a + b : fmax(a, b); });
    if (threadIdx.x != 0 || bad[0] == 0) return;
    atomicAdd(p.bad, bad[0]);
    atomic_largest(p.bad + 1, bad[1]);
  }

 private:
  __device__ __forceinline__ void store(int64_t n, int label) {
    switch (p.labels.type) {
      case Type::u8:
        p.labels.as<uint8_t>()[n] = static_cast<uint8_t>(label);
        break;
      case Type::i16:
        p.labels.as<int16_t>()[n] = static_cast<int16_t>(label);
        break;
      case Type::i32:
        p.labels.as<int32_t>()[n] = label;
        break;
      default:
        p.labels.as<int64_t>()[n] = label;
    }
  }
};

}  // namespace metricseg::predict
