// Rows of chosen pixels on CUDA: out of a feature map in place, and back into its gradient. A block takes a row, its
// threads the channels. They read it twice: for the norm and, from cache, for the quotient. Backward finds the indices
// sorted; the block at the first of a run of equal ones adds up the rows of the run, so no atomic is needed. Traffic:
// docs/kernels/anchors.md.
#pragma once

#include <type_traits>

#include "../common/cuda/reduce.cuh"
#include "../common/cuda/scalar.cuh"
#include "params.h"

namespace metricseg::anchors {

template <typename T>
METRICSEG_HD T at_least(T eps, T norm) {
  return norm < eps ? eps : norm;  // NaN stays
}

template <typename T>
__global__ void __launch_bounds__(256) gather_fwd_kernel(GatherParams<T> p) {
  const int64_t s = blockIdx.x, pixel = p.index[s];
  const bool known = p.known(pixel);
  const int64_t from = known ? p.offset(pixel) : 0;
  T square = 0;
  if (known) {
    with_storage<T>(p.features, [&](auto* features) {
      for (int64_t c = threadIdx.x; c < p.channels; c += blockDim.x) {
        const T x = widen<T>(features[from + c * p.features.k]);
        square += x * x;
      }
    });
  }
  square = block_sum(square);
  // y = x / max(|x|, eps)
  const T norm = sqrt(square), divisor = p.normalize && square != 0 ? at_least(p.eps, norm) : T(1);
  if (threadIdx.x == 0) p.norms[s] = norm;
  const T absent = pixel == -1 ? T(0) : T(NAN);
  with_storage<T>(p.features, [&](auto* features) {
    auto* const row = p.rows.template as<std::remove_pointer_t<decltype(features)>>() + s * p.channels;
    for (int64_t c = threadIdx.x; c < p.channels; c += blockDim.x) {
      const T x = known ? widen<T>(features[from + c * p.features.k]) : absent;
      narrow(x / divisor, row[c]);
    }
  });
}

// G = sum of the gradients of the rows of a pixel; then through the normalization: (G - y <y, G>) / |x|, or G / eps
// if |x| < eps, or 0 if |x| = 0.
template <typename T>
__global__ void __launch_bounds__(256) gather_bwd_kernel(GatherParams<T> p) {
  const int64_t first = blockIdx.x, pixel = p.index[first];
  if (!p.known(pixel) || (first > 0 && p.index[first - 1] == pixel)) return;  // no pixel, or that of another block
  int64_t last = first + 1;
  while (last < p.count && p.index[last] == pixel) ++last;
  const auto sum = [&](auto* gradients, int64_t c) {
    T total = 0;
    for (int64_t i = first; i < last; ++i) total += widen<T>(gradients[p.order[i] * p.grad_rows.y + c * p.grad_rows.x]);
    return total;
  };
  const int64_t row = p.order[first];
  const T norm = p.normalize ? p.norms[row] : T(1), divisor = p.normalize ? at_least(p.eps, norm) : T(1);
  const bool projects = p.normalize && !(norm <= p.eps);
  const auto unit = [&](auto* gradients, int64_t c) {  // the rows are stored as the gradients are
    return widen<T>(p.rows.template as<std::remove_pointer_t<decltype(gradients)>>()[row * p.channels + c]);
  };
  T along = 0;
  if (projects) {
    with_storage<T>(p.grad_rows, [&](auto* gradients) {
      for (int64_t c = threadIdx.x; c < p.channels; c += blockDim.x) along += unit(gradients, c) * sum(gradients, c);
    });
  }
  along = block_sum(along);
  const int64_t to = p.offset(pixel);
  with_storage<T>(p.grad_rows, [&](auto* gradients) {
    auto* const grad = p.features.template as<std::remove_pointer_t<decltype(gradients)>>() + to;
    for (int64_t c = threadIdx.x; c < p.channels; c += blockDim.x) {
      const T total = sum(gradients, c) - (projects ? unit(gradients, c) * along : T(0));
      narrow(norm == 0 ? T(0) : total / divisor, grad[c * p.features.k]);
    }
  });
}

}  // namespace metricseg::anchors
