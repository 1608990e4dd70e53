// Labels and logits of single pixels, for the forms of the walk and for kernels of one thread per pixel.
#pragma once

#include "softmax_pixel.h"
#include "walk.cuh"

namespace metricseg::resized {

// Labels out of range of a block, in shared memory. They are rare, and integers, so atomics give the same bits in any
// order.
struct BadLabels {
  int count;
  long long worst;  // the largest

  __device__ __forceinline__ void add(long long label) {
    atomicAdd(&count, 1);
    atomicMax(&worst, label);
  }
};

constexpr BadLabels kNoBadLabels{0, std::numeric_limits<long long>::min()};

template <typename Params>
__device__ __forceinline__ int fetch_class(const Params& p, int classes, int64_t offset) {
  return static_cast<int>(class_of(load_label(p.target, offset), classes, p.ignore_index));
}

// W = sum_k w_k, the same in every thread of the block; only label smoothing needs it.
template <typename T, typename Params>
__device__ __forceinline__ T total_weight(const Params& p) {
  if (p.label_smoothing == T(0) || p.weight == nullptr) return static_cast<T>(p.classes);
  T sum = 0;
  for (int k = threadIdx.x % kWarp; k < p.classes; k += kWarp) sum += p.weight[k];
  return group_sum(sum, kWarp);
}

template <typename T, typename Params>
__device__ __forceinline__ SoftmaxParams<T> softmax_params(const Params& p) {
  return {p.gamma, p.label_smoothing, p.label_smoothing / static_cast<T>(p.classes), total_weight<T>(p)};
}

// The logit of one class at one pixel.
template <typename T, typename Params>
struct Sampler {
  const Params& p;
  int64_t corner[2][2];  // offsets of the four cells, class 0
  T fy, fx;

  __device__ __forceinline__ Sampler(const Params& params, int64_t image, int64_t y, int64_t x) : p(params) {
    const int64_t cy[2] = {p.y.cell(y), p.y.next(p.y.cell(y))}, cx[2] = {p.x.cell(x), p.x.next(p.x.cell(x))};
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) corner[i][j] = p.input.offset(image, 0, cy[i], cx[j]);
    }
    // beyond the last cell both are equal, and 0 would make NaN of an infinity
    fy = cy[0] == cy[1] ? T(0.5) : p.y.template fraction<T>(y);
    fx = cx[0] == cx[1] ? T(0.5) : p.x.template fraction<T>(x);
  }
  template <typename Stored>
  __device__ __forceinline__ T operator()(const Stored* input, int64_t k) const {
    const auto cell = [&](int i, int j) { return widen<T>(input[corner[i][j] + k * p.input.k]); };
    const T upper = blend(p.x, cell(0, 0), cell(0, 1), fx), lower = blend(p.x, cell(1, 0), cell(1, 1), fx);
    return blend(p.y, upper, lower, fy);
  }
};

}  // namespace metricseg::resized
