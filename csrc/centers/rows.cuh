// Kernels on the rows of centers, [K, C]: weights and bias of centers and their gradient, a block for each row; and rows
// as the operands of products, rounded once and padded with zeros to whole tiles. Formulas: `folded` and
// `fold_gradient` of metricseg_kernels/centers. Derivation: docs/kernels/centers.md.
#pragma once

#include "../engines/pixel_rows/views.cuh"
#include "params.h"

namespace metricseg::centers {

constexpr int kRowThreads = 128;

// Operands of rows.
template <typename T>
struct RowsParams {
  const T* from;  // [images, M, J] with these strides
  int64_t image, row, column;
  int64_t rows, columns, padded_rows, padded_columns;  // M, J
  int64_t count;                                       // of the padded values of all images
  void* to;                                            // [count] operands

  int64_t blocks() const { return (count + kProductThreads - 1) / kProductThreads; }
};

template <typename Kind>
__device__ __forceinline__ void fill_rows(const RowsParams<typename Kind::Sum>& p, int64_t block) {
  const int64_t i = block * kProductThreads + threadIdx.x;
  if (i >= p.count) return;
  const int64_t column = i % p.padded_columns, row = i / p.padded_columns % p.padded_rows;
  const int64_t image = i / p.padded_columns / p.padded_rows;
  const bool known = row < p.rows && column < p.columns;
  static_cast<typename Kind::Operand*>(p.to)[i] =
      Kind::round(known ? p.from[image * p.image + row * p.row + column * p.column] : typename Kind::Sum(0));
}

template <typename Kind>
__global__ void __launch_bounds__(kProductThreads) rows_kernel(RowsParams<typename Kind::Sum> p) {
  fill_rows<Kind>(p, blockIdx.x);
}

// weights = scale x / |x|, scale x, or 2 scale x with the bias -scale |x|^2
template <typename T>
__global__ void __launch_bounds__(kRowThreads) fold_fwd_kernel(FoldParams<T> p) {
  const int64_t row = blockIdx.x, begin = row * p.channels;
  T square = 0;
#pragma unroll 1
  for (int64_t c = threadIdx.x; c < p.channels; c += kRowThreads) {
    const T x = load_float<T>(p.centers, begin + c);
    square += x * x;
  }
  if (p.metric != Metric::dot) square = block_sum(square);
  const T norm = sqrt(square), factor = p.metric == Metric::euclidean ? 2 * p.scale : p.scale;
  const T least = p.metric != Metric::cosine ? T(1) : norm < p.eps ? p.eps : norm;
  const bool zero = p.metric == Metric::cosine && square == T(0);
#pragma unroll 1
  for (int64_t c = threadIdx.x; c < p.channels; c += kRowThreads) {
    p.weights[begin + c] = zero ? T(0) : factor * (load_float<T>(p.centers, begin + c) / least);
  }
  if (p.metric == Metric::euclidean && threadIdx.x == 0) p.bias[row] = -p.scale * square;
}

// cosine: scale (g - u <u, g>) / |x|, u = x / |x|; of a norm below eps, scale g / eps; of 0, 0
template <typename T>
__global__ void __launch_bounds__(kRowThreads) fold_bwd_kernel(FoldParams<T> p) {
  const int64_t row = blockIdx.x, begin = row * p.channels;
  T square = 0, along = 0, norm = 0, least = 1;
  if (p.metric == Metric::cosine) {
    for (int64_t c = threadIdx.x; c < p.channels; c += kRowThreads) {
      const T x = load_float<T>(p.centers, begin + c);
      square += x * x;
    }
    square = block_sum(square);
    norm = sqrt(square);
    least = norm < p.eps ? p.eps : norm;
    for (int64_t c = threadIdx.x; c < p.channels; c += kRowThreads) {
      along += load_float<T>(p.centers, begin + c) / least * p.weights[begin + c];
    }
    along = block_sum(along);
    if (norm < p.eps) along = 0;
  }
  const T bias = p.bias ? p.bias[row] : T(0);
  with_storage<T>(p.grad, [&](auto* grad) {
    for (int64_t c = threadIdx.x; c < p.channels; c += kRowThreads) {
      const T x = load_float<T>(p.centers, begin + c), g = p.weights[begin + c];
      T value = p.scale * g;
      if (p.metric == Metric::cosine) value = square == T(0) ? T(0) : p.scale * ((g - x / least * along) / least);
      if (p.metric == Metric::euclidean) value = 2 * p.scale * (g - x * bias);
      narrow(value, grad[begin + c]);
    }
  });
}

template <typename T, typename Device>
void fold_fwd(Device& device, const FoldParams<T>& p) {
  if (p.rows > 0) device.launch(fold_fwd_kernel<T>, p.rows, kRowThreads, 0, p);
}

template <typename T, typename Device>
void fold_bwd(Device& device, const FoldParams<T>& p) {
  if (p.rows > 0) device.launch(fold_bwd_kernel<T>, p.rows, kRowThreads, 0, p);
}

}  // namespace metricseg::centers
