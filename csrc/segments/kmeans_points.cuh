// Pixels of spherical k-means on CUDA: their embeddings, interpolated or not, locations, weights and first clusters.
#pragma once

#include "../common/cuda/scalar.cuh"
#include "kmeans_layout.h"

namespace metricseg::segments {

template <typename T>
struct KmeansScratch {
  T* length;   // [B, N] L = max(|x|, eps), or null without a location
  T* weight;   // [B, N] w with q = w [x; L y; L x], or -1 for a pixel that takes no part
  T* centers;  // [B, blocks, J, kClusters]
  T* bias;     // [B, blocks, kClusters]: 0, or -inf for a cluster without a pixel
  T* sums;     // [B, shares, K, J + 1]: sums of q, number of pixels
};

template <typename T>
struct Point {
  T y, x;
};

template <typename T>
__device__ __forceinline__ Point<T> location_at(const KmeansParams<T>& p, int64_t image, int row, int column) {
  if (p.location) {
    const int64_t at = p.location.offset(image, 0, row, column);
    return {load_float<T>(p.location, at), load_float<T>(p.location, at + p.location.k)};
  }
  const int64_t H = p.y.labels, W = p.x.labels;
  return {static_cast<T>(row) / static_cast<T>(H > 1 ? H - 1 : 1),
          static_cast<T>(column) / static_cast<T>(W > 1 ? W - 1 : 1)};
}

// The four cells of a pixel in channel 0 of an image; the first alone without an interpolation. An axis of the same
// size takes one cell: 0 times its neighbor might be NaN.
template <typename T>
__device__ __forceinline__ int64_t find_cells(const KmeansParams<T>& p, int row, int column, Steps<T>& steps) {
  if (!p.resized()) return p.embeddings.offset(0, 0, row, column);
  const int64_t y = p.y.cell(row), x = p.x.cell(column);
  steps.down = p.y.identity() ? 0 : (p.y.next(y) - y) * p.embeddings.y;
  steps.right = p.x.identity() ? 0 : (p.x.next(x) - x) * p.embeddings.x;
  steps.fy = p.y.template fraction<T>(row);
  steps.fx = p.x.template fraction<T>(column);
  return p.embeddings.offset(0, 0, y, x);
}

template <typename T, typename Stored>
__device__ __forceinline__ T interpolate(const Stored* x, const Steps<T>& s) {
  const T wy = T(1) - s.fy, wx = T(1) - s.fx;
  const T upper = wy * wx * widen<T>(x[0]) + wy * s.fx * widen<T>(x[s.right]);
  return upper + (s.fy * wx * widen<T>(x[s.down]) + s.fy * s.fx * widen<T>(x[s.down + s.right]));
}

// With s = |x|^2:  L = max(|x|, eps),  v = x / L,  q = [v; y; x] / |[v; y; x]| = w [x; L y; L x]
template <typename T>
__global__ void __launch_bounds__(kThreads) start_kernel(KmeansParams<T> p, KmeansScratch<T> s, int tiles) {
  const int64_t image = blockIdx.x / tiles;
  const int n = blockIdx.x % tiles * kThreads + threadIdx.x, W = static_cast<int>(p.x.labels);
  if (n >= p.pixels()) return;
  const int row = n / W, column = n % W;
  Steps<T> steps{};
  const int64_t at = find_cells(p, row, column, steps);
  T square = 0;
  with_storage<T>(p.embeddings, [&](auto* data) {
    const auto* x = data + image * p.embeddings.b + at;
    const bool resized = p.resized();
#pragma unroll 8
    for (int c = 0; c < p.channels; ++c, x += p.embeddings.k) {
      const T value = resized ? interpolate(x, steps) : widen<T>(*x);
      square += value * value;
    }
  });
  const T norm = sqrt(square), length = norm < p.eps ? p.eps : norm, v = norm / length;
  const int64_t place = image * p.pixels() + n;
  T total = v * v, weight = T(1) / length;
  if (p.located()) {
    const Point<T> point = location_at(p, image, row, column);
    total = total + point.y * point.y + point.x * point.x;
    const T all = sqrt(total);
    weight = total == T(0) ? T(0) : T(1) / (length * (all < p.eps ? p.eps : all));
    s.length[place] = length;
  }
  bool known = total - total == T(0);  // not NaN, not infinite
  if (known && p.valid) known = label_at(p.valid, image, row, column) != 0;
  int64_t first = row / p.block_rows * p.grid_columns + column / p.block_columns;
  if (p.init) first = label_at(p.init, image, row, column);
  s.weight[place] = known ? weight : T(-1);
  p.ids[place] = known && first >= 0 && first < p.clusters ? first : -1;
}

}  // namespace metricseg::segments
