// Rows of chosen pixels on CUDA: out of a feature map in place, and back into its gradient. A block takes a row, its
// threads the channels. They read it twice: for the norm and, from cache, for the quotient. Backward finds the indices
// sorted; the block at the first of a run of equal ones adds up the rows of the run, so no atomic is needed. Traffic:
// docs/kernels/anchors.md.
#pragma once

#include <type_traits>

#include "../common/cuda/reduce.cuh"
#include "../common/cuda/scalar.cuh"
#include "../common/tensor_map.h"

namespace metricseg::anchors {

template <typename T>
struct Rows {
  Map map;  // [B, C, h, w]: features, or their gradient
  int64_t batch, height, width, channels, count;
  bool normalize;
  T eps;
  const int64_t* index;  // [S]
  const int64_t* order;  // [S] the rows that sorted indices belong to; backward only
  Map rows;              // [S, C] as y, x
  Map grad_rows;         // [S, C] as y, x; backward only
  T* norms;              // [S]

  METRICSEG_HD bool known(int64_t pixel) const { return pixel >= 0 && pixel < batch * height * width; }
  METRICSEG_HD T at_least_eps(T norm) const { return norm < eps ? eps : norm; }  // NaN stays
  // In elements, of channel 0.
  METRICSEG_HD int64_t offset(int64_t pixel) const {
    return pixel / width / height * map.b + pixel / width % height * map.y + pixel % width * map.x;
  }
};

// Type and Scalar name the same types in the same order.
METRICSEG_HD Scalar scalar_of(Type type) { return static_cast<Scalar>(static_cast<int>(type)); }

// The sum over the block in a fixed order, in every thread.
template <typename T>
__device__ __forceinline__ T block_total(T value) {
  __shared__ T parts[kWarp];
  value = group_sum(value, kWarp);
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  T sum = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) sum += parts[w];
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(256) gather_kernel(Rows<T> r) {
  const int64_t s = blockIdx.x, pixel = r.index[s];
  const bool known = r.known(pixel);
  const Scalar type = scalar_of(r.map.type);
  const int64_t from = known ? r.offset(pixel) : 0;
  T square = 0;
  if (known) {
    with_storage<T>(r.map.data, type, [&](auto* features) {
      for (int64_t c = threadIdx.x; c < r.channels; c += blockDim.x) {
        const T x = widen<T>(features[from + c * r.map.k]);
        square += x * x;
      }
    });
  }
  square = block_total(square);
  // y = x / max(|x|, eps)
  const T norm = sqrt(square), divisor = r.normalize && square != 0 ? r.at_least_eps(norm) : T(1);
  if (threadIdx.x == 0) r.norms[s] = norm;
  const T absent = pixel == -1 ? T(0) : T(NAN);
  with_storage<T>(r.map.data, type, [&](auto* features) {
    auto* const row = stored<std::remove_pointer_t<decltype(features)>>(r.rows.data) + s * r.channels;
    for (int64_t c = threadIdx.x; c < r.channels; c += blockDim.x) {
      const T x = known ? widen<T>(features[from + c * r.map.k]) : absent;
      narrow(x / divisor, row[c]);
    }
  });
}

// G = sum of the gradients of the rows of a pixel; then through the normalization: (G - y <y, G>) / |x|, or G / eps
// if |x| < eps, or 0 if |x| = 0.
template <typename T>
__global__ void __launch_bounds__(256) scatter_kernel(Rows<T> r) {
  const int64_t first = blockIdx.x, pixel = r.index[first];
  if (!r.known(pixel) || (first > 0 && r.index[first - 1] == pixel)) return;  // no pixel, or another block owns it
  int64_t last = first + 1;
  while (last < r.count && r.index[last] == pixel) ++last;
  const Scalar type = scalar_of(r.map.type);
  const auto sum = [&](auto* gradients, int64_t c) {
    T total = 0;
    for (int64_t i = first; i < last; ++i) total += widen<T>(gradients[r.order[i] * r.grad_rows.y + c * r.grad_rows.x]);
    return total;
  };
  const int64_t row = r.order[first];
  const T norm = r.normalize ? r.norms[row] : T(1), divisor = r.normalize ? r.at_least_eps(norm) : T(1);
  const bool projects = r.normalize && !(norm <= r.eps);
  const auto unit = [&](auto* gradients, int64_t c) {  // the rows are stored as the gradients are
    return widen<T>(stored<std::remove_pointer_t<decltype(gradients)>>(r.rows.data)[row * r.channels + c]);
  };
  T along = 0;
  if (projects) {
    with_storage<T>(r.grad_rows.data, type, [&](auto* gradients) {
      for (int64_t c = threadIdx.x; c < r.channels; c += blockDim.x) along += unit(gradients, c) * sum(gradients, c);
    });
  }
  along = block_total(along);
  const int64_t to = r.offset(pixel);
  with_storage<T>(r.grad_rows.data, type, [&](auto* gradients) {
    auto* const grad = stored<std::remove_pointer_t<decltype(gradients)>>(r.map.data) + to;
    for (int64_t c = threadIdx.x; c < r.channels; c += blockDim.x) {
      const T total = sum(gradients, c) - (projects ? unit(gradients, c) * along : T(0));
      narrow(norm == 0 ? T(0) : total / divisor, grad[c * r.map.k]);
    }
  });
}

}  // namespace metricseg::anchors
