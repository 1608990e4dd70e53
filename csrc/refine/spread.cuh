// The gradient of the features of refined upsampling on CUDA, dx[cell] = sum_p w(p, cell) g(p). A block owns 4 x 16 cells
// and keeps their sums in shared memory; a lane owns channels. It goes through the pixels that reach its cells, in order,
// and adds each to up to nine cells: no atomics on values, and the same bits every time. Which pixels these are is found
// on the device: `place` bounds the cells that each tile of 16 x 16 pixels reaches, and each row of tiles, and the block
// skips what lies apart. So offsets may have any length; long ones cost time. Derivation: docs/kernels/refine.md.
#pragma once

#include <type_traits>

#include "locate.cuh"

namespace metricseg::refine {

constexpr int kPlaceThreads = 256, kPlaceColumns = 16;  // a pixel each
constexpr int kCellRows = 4, kCellColumns = 16, kCells = kCellRows * kCellColumns;
constexpr int kSpreadWarps = 2;  // of a block, at most

template <typename T>
constexpr int kEach = sizeof(T) == 8 ? 1 : 2;  // channels of a lane
template <typename T>
constexpr int kLine = kWarp * kEach<T> + 1;  // from a cell to the next: lanes along either hit all banks

// The 3 x 3 cells of a pixel, from (row, column) on, and the factors of their weights.
template <typename T>
struct alignas(16) Place {
  int row, column;
  T by_row[3], by_column[3];
};

constexpr int kNowhere = -3;  // of a pixel whose cells do not weigh

// Cells that pixels reach, as maxima: h - first row, last row + 1, and so for columns. 0: none.
struct Bounds {
  int of[4];
};

struct CellTile {
  int64_t image;
  int row, column;

  __device__ __forceinline__ bool meets(const Bounds& b, const Axis& y, const Axis& x) const {
    return b.of[0] > 0 && y.cells - b.of[0] < row + kCellRows && b.of[1] > row &&
           x.cells - b.of[2] < column + kCellColumns && b.of[3] > column;
  }
};

template <typename T>
struct SpreadScratch {
  Tiling tiling;     // of pixels
  Place<T>* places;  // [B, tiles, kPlaceThreads]
  Bounds* tiles;     // [B, tiles]
  Bounds* bands;     // [B, tile_rows]; zero at first
};

template <typename T>
__device__ __forceinline__ int last_of(const T (&weight)[3]) {
  return weight[2] != T(0) ? 2 : weight[1] != T(0) ? 1 : 0;
}

template <typename T>
__global__ void __launch_bounds__(kPlaceThreads) place_kernel(RefineParams<T> p, SpreadScratch<T> s) {
  __shared__ int parts[kPlaceThreads / kWarp][4];
  const Pixel at = pixel_of(p, s.tiling, blockIdx.x, threadIdx.x);
  Place<T> place{kNowhere, kNowhere, {}, {}};
  Bounds bounds{};
  if (at.inside) {
    const auto [y, x, state] = locate(p, at);
    // not a NaN, nor outside of a map that is padded by zeros
    if (y.weight[0] + y.weight[1] + y.weight[2] > T(0) && x.weight[0] + x.weight[1] + x.weight[2] > T(0)) {
      place.row = y.first;
      place.column = x.first;
      for (int i = 0; i < 3; ++i) {
        place.by_row[i] = y.weight[i];
        place.by_column[i] = x.weight[i];
      }
      bounds = {static_cast<int>(p.y.cells) - y.first, y.first + last_of(y.weight) + 1,
                static_cast<int>(p.x.cells) - x.first, x.first + last_of(x.weight) + 1};
    }
  }
  s.places[int64_t(blockIdx.x) * kPlaceThreads + threadIdx.x] = place;
  for (int i = 0; i < 4; ++i) bounds.of[i] = group_max(bounds.of[i], kWarp);
  if (threadIdx.x % kWarp == 0) {
    for (int i = 0; i < 4; ++i) parts[threadIdx.x / kWarp][i] = bounds.of[i];
  }
  __syncthreads();
  if (threadIdx.x >= 4) return;
  int most = 0;
  for (auto& part : parts) most = part[threadIdx.x] > most ? part[threadIdx.x] : most;
  s.tiles[blockIdx.x].of[threadIdx.x] = most;
  atomicMax(&s.bands[blockIdx.x / s.tiling.tile_columns].of[threadIdx.x], most);  // of integers: any order
}

// f(i) for each of the bounds that a tile of cells meets, in order, in all lanes of all warps alike.
template <typename F>
__device__ __forceinline__ void each_meeting(const Bounds* bounds, int count, const CellTile& tile, const Axis& y,
                                             const Axis& x, F f) {
  for (int first = 0; first < count; first += kWarp) {
    const int i = first + static_cast<int>(threadIdx.x % kWarp);
    unsigned mask = __ballot_sync(kFullMask, i < count && tile.meets(bounds[i], y, x));
    for (; mask != 0; mask &= mask - 1) f(first + __ffs(mask) - 1);
  }
}

// Whether one of three cells from `first` on weighs and is one of `size` from `begin` on.
template <typename T>
__device__ __forceinline__ bool reaches(int first, const T (&weight)[3], int begin, int size) {
  bool any = false;
#pragma unroll
  for (int i = 0; i < 3; ++i) any |= weight[i] != T(0) && first + i >= begin && first + i < begin + size;
  return any;
}

// The sums of the cells of a pixel, in registers as long as the next pixel has the same.
template <typename T>
struct Held {
  int row, column;
  T sum[9][kEach<T>];

  // f(sum, place in shared memory) for those cells that are in the tile
  template <typename F>
  __device__ __forceinline__ void each(const CellTile& tile, F f) {
    const int y = row - tile.row, x = column - tile.column;
#pragma unroll
    for (int r = 0; r < 3; ++r) {
      if (y + r < 0 || y + r >= kCellRows) continue;
#pragma unroll
      for (int q = 0; q < 3; ++q) {
        if (x + q < 0 || x + q >= kCellColumns) continue;
#pragma unroll
        for (int j = 0; j < kEach<T>; ++j) {
          f(sum[3 * r + q][j], ((y + r) * kCellColumns + x + q) * kLine<T> + j * kWarp);
        }
      }
    }
  }

  // sum[cell] += weight g
  __device__ __forceinline__ void add(const Place<T>& place, const T* gradient) {
    T g[kEach<T>];
#pragma unroll
    for (int j = 0; j < kEach<T>; ++j) g[j] = gradient[j * kWarp];
#pragma unroll
    for (int k = 0; k < 9; ++k) {
      const T weight = place.by_row[k / 3] * place.by_column[k % 3];
      if (weight == T(0)) continue;
#pragma unroll
      for (int j = 0; j < kEach<T>; ++j) sum[k][j] += weight * g[j];
    }
  }
};

// values [pixels, channels] = the gradients of those of the 32 pixels that `mask` has, of `width` channels from c on
template <typename T>
__device__ __forceinline__ void load_gradients(const RefineParams<T>& p, const Pixel& at, unsigned mask, int64_t c,
                                               int width, T* values) {
  constexpr int kBatch = 8;  // loads, before the first is stored
  const int lane = threadIdx.x % kWarp;
  const int64_t place = p.output.offset(at.image, c, at.row, at.column);
  with_storage<T>(p.output, [&](auto* grad) {
    if (p.output.k == 1) {  // lanes along channels
#pragma unroll 1
      for (int first = 0; first < kWarp; first += kBatch) {
        T batch[kBatch][kEach<T>];
#pragma unroll
        for (int q = 0; q < kBatch; ++q) {
          const auto* const from = grad + __shfl_sync(kFullMask, place, first + q);
#pragma unroll
          for (int j = 0; j < kEach<T>; ++j) {
            const bool wanted = (mask >> (first + q) & 1) && lane + j * kWarp < width;
            batch[q][j] = wanted ? widen<T>(from[lane + j * kWarp]) : T(0);
          }
        }
#pragma unroll
        for (int q = 0; q < kBatch; ++q) {
#pragma unroll
          for (int j = 0; j < kEach<T>; ++j) values[(first + q) * kLine<T> + lane + j * kWarp] = batch[q][j];
        }
      }
      return;
    }
    if ((mask >> lane & 1) == 0) return;
    const auto* const from = grad + place;
    const auto copy = [&](auto count, int first) {
      T batch[count.value];
#pragma unroll
      for (int q = 0; q < count.value; ++q) batch[q] = widen<T>(from[(first + q) * p.output.k]);
#pragma unroll
      for (int q = 0; q < count.value; ++q) values[lane * kLine<T> + first + q] = batch[q];
    };
    int first = 0;
#pragma unroll 1
    for (; first + kBatch <= width; first += kBatch) copy(std::integral_constant<int, kBatch>(), first);
    for (; first < width; ++first) copy(std::integral_constant<int, 1>(), first);
    for (; first < kWarp * kEach<T>; ++first) values[lane * kLine<T> + first] = 0;
  });
}

// The sums of a tile of cells to memory: lanes along cells, or along channels if these are neighbors there.
template <typename T>
__device__ __forceinline__ void write_sums(const RefineParams<T>& p, const CellTile& tile, int64_t c, int width,
                                           const T* sums) {
  const int lane = threadIdx.x % kWarp;
  with_storage<T>(p.grad_features, [&](auto* grad) {
    const auto write = [&](int cell, int channel) {
      const int row = tile.row + cell / kCellColumns, column = tile.column + cell % kCellColumns;
      if (row >= p.y.cells || column >= p.x.cells) return;
      narrow(sums[cell * kLine<T> + channel], grad[p.grad_features.offset(tile.image, c + channel, row, column)]);
    };
    if (p.grad_features.k == 1) {
      for (int cell = 0; cell < kCells; ++cell) {
        for (int channel = lane; channel < width; channel += kWarp) write(cell, channel);
      }
    } else {
      for (int channel = 0; channel < width; ++channel) {
        for (int cell = lane; cell < kCells; cell += kWarp) write(cell, channel);
      }
    }
  });
}

template <typename T>
constexpr int64_t spread_smem(int warps) {
  return kWarp * sizeof(Place<T>) + warps * (kCells + kWarp) * kLine<T> * sizeof(T);
}

template <typename T>
__global__ void __launch_bounds__(kSpreadWarps* kWarp, 4)
    spread_kernel(RefineParams<T> p, SpreadScratch<T> s, int tile_rows, int tile_columns, int chunks) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t tiles = int64_t(tile_rows) * tile_columns, flat = blockIdx.x / chunks;
  const int in_image = static_cast<int>(flat % tiles);
  const CellTile tile{flat / tiles, in_image / tile_columns * kCellRows, in_image % tile_columns * kCellColumns};
  constexpr int kWidth = kWarp * kEach<T>;
  const int64_t c = (blockIdx.x % chunks * int64_t(blockDim.x / kWarp) + warp) * kWidth, left = p.channels - c;
  const int width = left < 0 ? 0 : left < kWidth ? static_cast<int>(left) : kWidth;
  auto* const places = shared_memory<Place<T>>();                                             // [kWarp]
  T* const sums = reinterpret_cast<T*>(places + kWarp) + warp * (kCells + kWarp) * kLine<T>;  // [kCells, channels]
  T* const values = sums + kCells * kLine<T>;                                                 // [kWarp, channels]
  for (int cell = 0; cell < kCells; ++cell) {
#pragma unroll
    for (int j = 0; j < kEach<T>; ++j) sums[cell * kLine<T> + lane + j * kWarp] = 0;
  }
  const Tiling& t = s.tiling;
  each_meeting(s.bands + tile.image * t.tile_rows, t.tile_rows, tile, p.y, p.x, [&](int band) {
    const int64_t row_of_tiles = (tile.image * t.tile_rows + band) * t.tile_columns;
    each_meeting(s.tiles + row_of_tiles, t.tile_columns, tile, p.y, p.x, [&](int i) {
      const Place<T>* const from = s.places + (row_of_tiles + i) * kPlaceThreads;
#pragma unroll 1
      for (int first = 0; first < kPlaceThreads; first += kWarp) {
        const Place<T> own = from[first + lane];
        unsigned mask = __ballot_sync(kFullMask, reaches(own.row, own.by_row, tile.row, kCellRows) &&
                                                     reaches(own.column, own.by_column, tile.column, kCellColumns));
        if (mask == 0) continue;
        __syncthreads();  // the values before have been added
        if (warp == 0) places[lane] = own;
        load_gradients(p, pixel_of(p, t, row_of_tiles + i, first + lane), mask, c, width, values);
        __syncthreads();
#pragma unroll 1
        while (mask != 0) {
          int pixel = __ffs(mask) - 1;
          Place<T> place = places[pixel];
          Held<T> held{place.row, place.column, {}};
          held.each(tile, [&](T& sum, int at) { sum = sums[at + lane]; });
#pragma unroll 1
          do {
            held.add(place, values + pixel * kLine<T> + lane);
            mask &= mask - 1;
            if (mask == 0) break;
            pixel = __ffs(mask) - 1;
            place = places[pixel];
          } while (place.row == held.row && place.column == held.column);
          held.each(tile, [&](T& sum, int at) { sums[at + lane] = sum; });
        }
      }
    });
  });
  __syncthreads();
  write_sums(p, tile, c, width, sums);
}

}  // namespace metricseg::refine
