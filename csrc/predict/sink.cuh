// What becomes of the labels of a block: they are stored, or counted against the target. A thread counts the pixels that
// it meets with the same pair of classes, as neighbors mostly have, and adds their number once; counts of a block are
// summed in shared memory if [K, K] fits.
#pragma once

#include <limits>

#include "../common/cuda/reduce.cuh"
#include "../common/cuda/scalar.cuh"
#include "params.h"

namespace metricseg::predict {

using Count = unsigned long long;

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
  unsigned* const shared;                               // [K, K] of the block, or null
  unsigned key = 0, run = 0;                            // place of a pair, and its pixels since it changed
  unsigned bad = 0;                                     // labels out of range
  int64_t worst = std::numeric_limits<int64_t>::min();  // the largest of them

 public:
  __device__ __forceinline__ Sink(const CudaParams& p, unsigned* shared) : p(p), shared(shared) {
    if (shared == nullptr) return;
    for (int i = threadIdx.x; i < p.classes * p.classes; i += blockDim.x) shared[i] = 0;
    __syncthreads();
  }

  // The label of a pixel.
  __device__ __forceinline__ void take(int64_t image, int64_t y, int64_t x, bool inside, int label) {
    const int labels[] = {label};
    take_rows(image, y, y + 1, x, inside, labels);
  }

  // The labels of rows [y, y + R) of a column, as far as y_end.
  template <int R>
  __device__ __forceinline__ void take_rows(int64_t image, int64_t y, int64_t y_end, int64_t x, bool inside,
                                            const int (&labels)[R]) {
    if (!inside) return;
    if (p.counts) {
      dispatch_label(p.target.type, [&](auto zero) {
        using Label = decltype(zero);
        const Label* const target = p.target.as<const Label>() + p.target.offset(image, 0, y, x);
        Label found[R];
#pragma unroll
        for (int r = 0; r < R; ++r) found[r] = y + r < y_end ? target[r * p.target.y] : Label(0);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          if (y + r < y_end) count(found[r], labels[r]);
        }
      });
      return;
    }
    with_labels([&](auto* data) {
      data += (image * p.height + y) * p.width + x;
#pragma unroll
      for (int r = 0; r < R; ++r, data += p.width) {
        if (y + r < y_end) *data = static_cast<std::remove_pointer_t<decltype(data)>>(labels[r]);
      }
    });
  }

  // Adds the block's counts to those of all.
  __device__ __forceinline__ void finish() {
    if (!p.counts) return;
    flush();
    __syncthreads();
    for (int i = threadIdx.x; shared != nullptr && i < p.classes * p.classes; i += blockDim.x) {
      if (shared[i] != 0) atomicAdd(reinterpret_cast<Count*>(p.counts) + i, static_cast<Count>(shared[i]));
    }
    double sums[] = {static_cast<double>(bad), static_cast<double>(worst)};
    block_reduce(sums, [](int i, double a, double b) { return i == 0 ? a + b : fmax(a, b); });
    if (threadIdx.x != 0 || sums[0] == 0) return;
    atomicAdd(p.bad, sums[0]);
    atomic_largest(p.bad + 1, sums[1]);
  }

 private:
  __device__ __forceinline__ void count(int64_t target, int label) {
    const int64_t found = class_of(target, p.classes, p.ignore_index);
    if (found == kOutOfRange) {
      ++bad;
      worst = max(worst, target);
    }
    if (found < 0) return;
    const unsigned pair = static_cast<unsigned>(found) * p.classes + label;  // below 2^32
    if (pair != key) {
      flush();
      key = pair;
    }
    ++run;
  }

  __device__ __forceinline__ void flush() {
    if (run == 0) return;
    if (shared != nullptr) {
      atomicAdd(shared + key, run);
    } else {
      atomicAdd(reinterpret_cast<Count*>(p.counts) + key, static_cast<Count>(run));
    }
    run = 0;
  }

  template <typename F>
  __device__ __forceinline__ void with_labels(const F& f) {
    if (p.labels.type == Type::u8) {
      f(p.labels.as<uint8_t>());
    } else if (p.labels.type == Type::i16) {
      f(p.labels.as<int16_t>());
    } else if (p.labels.type == Type::i32) {
      f(p.labels.as<int32_t>());
    } else {
      f(p.labels.as<int64_t>());
    }
  }
};

}  // namespace metricseg::predict
