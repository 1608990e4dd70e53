// Scores of a single map, and the average of several that have too many classes for average.cuh: a first walk over the
// classes leaves the maximum and the sum of the softmax of each map in shared memory, a second one interpolates again and
// averages. Derivation: docs/kernels/predict.md.
#pragma once

#include "cells.cuh"

namespace metricseg::predict {

// A row of labels on a map: offset of its upper row of cells, way to the lower one.
template <typename T>
struct RowOfMap {
  int64_t offset, down;
  T share;
};

constexpr int kClasses = 8;  // of a turn of the walks

// A label column of a map, and the softmax of its pixel: p_k = factor exp(z_k - row_max).
template <typename T>
struct alignas(16) PixelOfMap {
  unsigned cells;  // twice the left one, and 1 if the right one is the next
  T share, row_max, factor;
};

// Logits of the classes from k0 on; -inf if there is no such class. The last class is read in its place, so that no load
// waits for a branch.
template <typename T, typename Stored>
__device__ __forceinline__ void load_logits(const Map& map, const Stored* data, const RowOfMap<T>& row, unsigned cells,
                                            T x_share, int k0, int classes, T (&z)[kClasses]) {
  const int64_t right = (cells & 1) * map.x, down = row.down;
  const T y_share = row.share;
  const Stored* at = data + row.offset + (cells >> 1) * map.x + k0 * map.k;
#pragma unroll
  for (int i = 0; i < kClasses; ++i) {
    const T top = mix(widen<T>(at[0]), widen<T>(at[right]), x_share);
    const T bottom = mix(widen<T>(at[down]), widen<T>(at[down + right]), x_share);
    z[i] = k0 + i < classes ? mix(top, bottom, y_share) : -std::numeric_limits<T>::infinity();
    at += k0 + i + 1 < classes ? map.k : 0;
  }
}

// A thread for each pixel.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4) two_walk_kernel(CudaParams p, Tiles tiles) {
  auto* const pixels = shared_memory<PixelOfMap<T>>() + threadIdx.x;  // [maps, kThreads]
  auto* const table = reinterpret_cast<RowOfMap<T>*>(shared_memory<PixelOfMap<T>>() + p.maps * kThreads);  // [maps]
  const T low = -std::numeric_limits<T>::infinity();
  Sink sink(p, shared_counts(tiles));
  for (int64_t tile = blockIdx.x; tile < tiles.all; tile += gridDim.x) {
    const auto [image, y, tile_column] = place_of(tiles, tile);
    const int64_t x = tile_column * kThreads + threadIdx.x;
    const bool inside = x < p.width;
    __syncthreads();  // the rows before have been read
    if (threadIdx.x < static_cast<unsigned>(p.maps)) {
      const Map& map = p.sources[threadIdx.x].map;
      const Between<T> row = between<T>(p.y(threadIdx.x), y);
      table[threadIdx.x] = {map.offset(image, 0, row.cell, 0), row.step * map.y, row.share};
    }
    __syncthreads();
    Best<T> best;
    T entropy = 0;
    with_storage<T>(p.sources[0].map, [&](auto* stored) {
      using Stored = std::remove_pointer_t<decltype(stored)>;
#pragma unroll 1
      for (int m = 0; m < p.maps; ++m) {
        const Map& map = p.sources[m].map;
        const Between<T> column = column_of<T>(p, m, inside ? x : p.width - 1);
        const unsigned cells = static_cast<unsigned>(column.cell) * 2 + column.step;
        T row_max = low, total = 0;
#pragma unroll 1
        for (int k0 = 0; k0 < p.classes; k0 += kClasses) {
          T z[kClasses], top = row_max;
          load_logits(map, map.template as<const Stored>(), table[m], cells, column.share, k0, p.classes, z);
#pragma unroll
          for (int i = 0; i < kClasses; ++i) top = z[i] > top ? z[i] : top;
          const T reference = top == low ? T(0) : top;
          total *= exp_nonpositive(row_max - reference);
#pragma unroll
          for (int i = 0; i < kClasses; ++i) {
            total += exp_nonpositive(z[i] - reference);
            if (p.maps == 1 && k0 + i < p.classes) best.take(z[i], k0 + i);
          }
          row_max = top;
        }
        pixels[m * kThreads] = {cells, column.share, row_max == low ? T(0) : row_max,
                                static_cast<T>(p.sources[m].share) / total};
      }
      // of a single map the largest logit decides, and its probability is factor
      if (p.maps == 1) best.value = pixels[0].factor;
      if (p.maps == 1 && !p.entropy) return;
#pragma unroll 1
      for (int k0 = 0; k0 < p.classes; k0 += kClasses) {
        T sums[kClasses] = {};
#pragma unroll 1
        for (int m = 0; m < p.maps; ++m) {
          const Map& map = p.sources[m].map;
          const PixelOfMap<T> pixel = pixels[m * kThreads];
          T z[kClasses];
          load_logits(map, map.template as<const Stored>(), table[m], pixel.cells, pixel.share, k0, p.classes, z);
#pragma unroll
          for (int i = 0; i < kClasses; ++i) sums[i] += pixel.factor * exp_nonpositive(z[i] - pixel.row_max);
        }
#pragma unroll
        for (int i = 0; i < kClasses; ++i) {
          if (p.maps > 1 && k0 + i < p.classes) best.take(sums[i], k0 + i);
          if (p.entropy && k0 + i < p.classes) entropy += entropy_of(sums[i]);
        }
      }
    });
    finish_pixel(p, sink, image, y, x, inside, best, entropy);
  }
  sink.finish();
}

}  // namespace metricseg::predict
