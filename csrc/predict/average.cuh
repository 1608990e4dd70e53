// The largest of the averaged probabilities of several maps, with scores if they are wanted. The sums of all classes stay
// in registers, and each class of a map takes one exponential. Derivation: docs/kernels/predict.md.
#pragma once

#include "../common/cuda/sweep.cuh"
#include "cells.cuh"

namespace metricseg::predict {

constexpr int kAverageThreads = 256;
constexpr int kAverageRows = 4;  // label rows of a tile

// A tile's cells of one map in shared memory: [rows, cells, stride], classes fastest, with -inf in the padding.
struct Stage {
  int columns;                        // label columns of a warp; the other lanes hold other classes of the same
  int rows, cells;                    // of the largest window
  int stride;                         // of a cell
  int rows_at, columns_at, cells_at;  // bytes of shared memory before them

  METRICSEG_HD int values() const { return rows * cells * stride; }
  METRICSEG_HD int tile_columns() const { return columns * (kAverageThreads / kWarp); }
};

// Cells of a map that a tile needs.
struct Window {
  int row, rows, column, columns;
};

// Where the two cells of a label lie in the stage, along an axis, and the share of the second.
template <typename T>
struct Staged {
  int first, second;
  T share;
};

template <typename T>
__device__ __forceinline__ Staged<T> staged(const Axis& axis, int64_t label, int64_t first_cell, int step) {
  const Between<T> at = between<T>(axis, label);
  const int first = static_cast<int>(at.cell - first_cell) * step;
  return {first, first + at.step * step, at.share};
}

struct Span {
  int64_t begin, count;
};

// The cells of labels [begin, end), which end at the last label of the axis.
__device__ __forceinline__ Span cells_of(const Axis& axis, int64_t begin, int64_t end) {
  const int64_t first = axis.cell(begin), last = axis.next(axis.cell(min(end, axis.labels) - 1));
  return {first, last - first + 1};
}

// Columns of a mirrored map are taken from its other end.
__device__ __forceinline__ Span columns_of(const CudaParams& p, int m, int64_t x0, int64_t x1) {
  x1 = min(x1, p.width);
  return p.sources[m].flipped ? cells_of(p.x(m), p.width - x1, p.width - x0) : cells_of(p.x(m), x0, x1);
}

// exp(z - row_max), of which `reference` is row_max in the unit of the exponent; 0 if there is no finite one. What
// rounding makes of the reference is the same for all classes.
__device__ __forceinline__ float reference_of(float row_max) {
  return row_max == -std::numeric_limits<float>::infinity() ? 0.0f : row_max * 1.4426950408889634f;
}
__device__ __forceinline__ float exp_from(float z, float reference) {
  return power_of_2(fmaf(z, 1.4426950408889634f, -reference));
}
__device__ __forceinline__ double reference_of(double row_max) {
  return row_max == -std::numeric_limits<double>::infinity() ? 0.0 : row_max;
}
__device__ __forceinline__ double exp_from(double z, double reference) { return std::exp(z - reference); }

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

// Shared memory of a block.
template <typename T>
struct Tables {
  const Stage& stage;

  template <typename V>
  __device__ __forceinline__ V* at(int bytes) const {
    return reinterpret_cast<V*>(shared_memory<unsigned char>() + bytes);
  }
  __device__ __forceinline__ Window* windows() const { return at<Window>(0); }                       // [maps]
  __device__ __forceinline__ Staged<T>* rows() const { return at<Staged<T>>(stage.rows_at); }        // [maps, rows]
  __device__ __forceinline__ Staged<T>* columns() const { return at<Staged<T>>(stage.columns_at); }  // [maps, columns]
  __device__ __forceinline__ T* cells() const { return at<T>(stage.cells_at); }

  // Where the cells of a tile's labels lie.
  __device__ __forceinline__ void fill(const CudaParams& p, int64_t y0, int64_t x0) const {
    const int wide = stage.tile_columns();
    for (int m = threadIdx.x; m < p.maps; m += kAverageThreads) {
      const Span down = cells_of(p.y(m), y0, y0 + kAverageRows), across = columns_of(p, m, x0, x0 + wide);
      windows()[m] = {static_cast<int>(down.begin), static_cast<int>(down.count), static_cast<int>(across.begin),
                      static_cast<int>(across.count)};
    }
    __syncthreads();
    for (int i = threadIdx.x; i < p.maps * (kAverageRows + wide); i += kAverageThreads) {
      const bool of_row = i < p.maps * kAverageRows;
      const int j = of_row ? i : i - p.maps * kAverageRows, each = of_row ? kAverageRows : wide;
      const int m = j / each, part = j - m * each;
      const int64_t label = min((of_row ? y0 : x0) + part, (of_row ? p.height : p.width) - 1);
      (of_row ? rows() : columns())[j] = staged<T>(
          of_row ? p.y(m) : p.x(m), !of_row && p.sources[m].flipped ? p.width - 1 - label : label,
          of_row ? windows()[m].row : windows()[m].column, of_row ? stage.cells * stage.stride : stage.stride);
    }
  }

  __device__ __forceinline__ void copy(const CudaParams& p, int m, int64_t image) const {
    constexpr int kBatch = 4;
    const Map& map = p.sources[m].map;
    const Window window = windows()[m];
    const int64_t origin = map.offset(image, 0, window.row, window.column);
    with_storage<T>(map, [&](auto* data) {
      using Stored = std::remove_pointer_t<decltype(data)>;
      block_sweep(p.classes, window.columns, map.k < map.x, [&](int k, int c) {
        const Stored* from = data + (origin + k * map.k + c * map.x);
        T* to = cells() + c * stage.stride + k;
        for (int row = 0; row < window.rows; row += kBatch) {
          Stored values[kBatch];
#pragma unroll
          for (int i = 0; i < kBatch; ++i) values[i] = row + i < window.rows ? from[i * map.y] : Stored{};
#pragma unroll
          for (int i = 0; i < kBatch; ++i) {
            if (row + i < window.rows) to[i * stage.cells * stage.stride] = widen<T>(values[i]);
          }
          from += kBatch * map.y;
          to += kBatch * stage.cells * stage.stride;
        }
      });
    });
  }

  // [KT] classes of a row of cells at a column.
  template <int KT>
  __device__ __forceinline__ void read(int row, int class0, const Staged<T>& column, T (&z)[KT]) const {
    const T *const left = cells() + row + column.first + class0, *const right = cells() + row + column.second + class0;
#pragma unroll
    for (int k = 0; k < KT; k += 2) {
      const auto a = *reinterpret_cast<const Pair<T>*>(left + k), b = *reinterpret_cast<const Pair<T>*>(right + k);
      z[k] = mix(a.v[0], b.v[0], column.share);
      z[k + 1] = mix(a.v[1], b.v[1], column.share);
    }
  }
};

// Of the lanes that hold the classes of a column.
template <int Step = kWarp / 2, typename T, typename Join>
__device__ __forceinline__ T over_classes(int columns, T value, const Join& join) {
  if (Step < columns) return value;
  value = join(value, __shfl_xor_sync(kFullMask, value, Step));
  if constexpr (Step > 1) value = over_classes<Step / 2>(columns, value, join);
  return value;
}

// A warp takes `columns` label columns of kAverageRows rows, and its other lanes take other classes of these: the lanes of
// a column are `columns` apart.
template <typename T, int KT>
__global__ void __launch_bounds__(kAverageThreads, 2) averaging_kernel(CudaParams p, Tiles tiles, Stage stage) {
  constexpr int R = kAverageRows;
  const T low = -std::numeric_limits<T>::infinity();
  const Tables<T> tables{stage};
  const int lane = threadIdx.x % kWarp, class0 = lane / stage.columns * KT;
  const auto larger = [](T a, T b) { return fmax(a, b); };
  const auto plus = [](T a, T b) { return a + b; };
  Sink sink(p, shared_counts(tiles));
  for (int i = threadIdx.x; i < stage.values(); i += kAverageThreads) {
    tables.cells()[i] = low;
  }
  for (int64_t tile = blockIdx.x; tile < tiles.all; tile += gridDim.x) {
    const Place place = place_of(tiles, tile);
    const int64_t y0 = place.row * R, x0 = place.column * stage.tile_columns();
    __syncthreads();  // the tables of the tile before have been read
    tables.fill(p, y0, x0);
    T sums[R][KT];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int k = 0; k < KT; ++k) sums[r][k] = T(0);
    }
#pragma unroll 1
    for (int m = 0; m < p.maps; ++m) {
      __syncthreads();  // the cells of the map before have been read
      tables.copy(p, m, place.image);
      __syncthreads();
      const T share = static_cast<T>(p.sources[m].share);
      const int my_column = threadIdx.x / kWarp * stage.columns + lane % stage.columns;
      const Staged<T> column = tables.columns()[m * stage.tile_columns() + my_column];
      T top[KT], bottom[KT];
      int upper = -1, lower = -1;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const Staged<T> row = tables.rows()[m * R + r];
        if (row.first == lower) {
#pragma unroll
          for (int k = 0; k < KT; ++k) top[k] = bottom[k];
        } else if (row.first != upper) {
          tables.read(row.first, class0, column, top);
        }
        if (row.second != lower) tables.read(row.second, class0, column, bottom);
        upper = row.first;
        lower = row.second;
        T z[KT], row_max = low, total = 0;
#pragma unroll
        for (int k = 0; k < KT; ++k) {
          z[k] = mix(top[k], bottom[k], row.share);
          row_max = larger(row_max, z[k]);
        }
        const T reference = reference_of(over_classes(stage.columns, row_max, larger));
#pragma unroll
        for (int k = 0; k < KT; ++k) {
          z[k] = exp_from(z[k], reference);
          total += z[k];
        }
        const T factor = share * reciprocal(over_classes(stage.columns, total, plus));
#pragma unroll
        for (int k = 0; k < KT; ++k) sums[r][k] += factor * z[k];
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      Best<T> best;
      T entropy = 0;
#pragma unroll
      for (int k = 0; k < KT; ++k) {
        if (class0 + k >= p.classes) continue;
        best.take(sums[r][k], class0 + k);
        if (p.entropy) entropy += entropy_of(sums[r][k]);
      }
      for (int step = stage.columns; step < kWarp; step *= 2) {
        const T other = __shfl_xor_sync(kFullMask, best.value, step);
        best.join(other, __shfl_xor_sync(kFullMask, best.at, step));
      }
      if (p.entropy) entropy = over_classes(stage.columns, entropy, plus);
      const int64_t x = x0 + threadIdx.x / kWarp * stage.columns + lane % stage.columns;
      const bool mine = lane < stage.columns && x < p.width && y0 + r < p.height;
      finish_pixel(p, sink, place.image, y0 + r, x, mine, best, entropy);
    }
  }
  sink.finish();
}

}  // namespace metricseg::predict
