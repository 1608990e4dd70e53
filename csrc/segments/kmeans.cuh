// Spherical k-means on CUDA: two launches an iteration. `step` takes a part of an image: it loads a tile of 256 pixels,
// joins them to the nearest centers, and adds them to the sums of the next ones, from the same tile in shared memory.
// `center` adds the parts in order. A thread forms the products of two pixels with 32 clusters (16 in fp64) in
// registers; a warp adds rows of the tile, its lanes being columns, and writes when the cluster changes. No atomics.
// More channels than fit are loaded chunk by chunk, for each block of clusters. Derivation: docs/kernels/segments.md.
#pragma once

#include "../common/cuda/reduce.cuh"
#include "../common/cuda/vec.cuh"
#include "kmeans_points.cuh"

namespace metricseg::segments {

// A tile in shared memory, and what belongs to its pixels.
template <typename T>
struct Tile {
  T* values;        // [rows, kStride] of t = [x; L y; L x], a chunk
  T* centers;       // [rows, kClusters], a chunk of a block
  T* sums;          // [copies, K, J + 1]
  T* weights;       // [kTile]
  int* clusters;    // [kTile], -1 for none
  int64_t* places;  // [kTile] elements from channel 0 of the image
  Steps<T>* steps;  // [kTile] of an interpolation
  int64_t image;
  int first, count;  // pixels
};

template <typename T>
__device__ __forceinline__ Tile<T> lay_out(const KmeansLayout& l) {
  auto* const smem = shared_memory<unsigned char>();
  const auto at = [&](int64_t bytes) { return reinterpret_cast<T*>(smem + bytes); };
  return {at(0),
          at(l.centers_at),
          at(l.sums_at),
          at(l.weights_at),
          reinterpret_cast<int*>(smem + l.clusters_at),
          reinterpret_cast<int64_t*>(smem + l.places_at),
          reinterpret_cast<Steps<T>*>(smem + l.steps_at),
          0,
          0,
          0};
}

// to[line] = value(line) for lines begin, begin + step, ... < end. Loads are issued in batches, before a store waits for
// the first of them.
template <int kBatch, typename T, typename F>
__device__ __forceinline__ void copy_lines(int begin, int end, int step, T* to, int to_step, F value) {
#pragma unroll 1
  for (int line = begin; line < end; line += kBatch * step) {
    T values[kBatch];
#pragma unroll
    for (int q = 0; q < kBatch; ++q) values[q] = line + q * step < end ? value(line + q * step) : T(0);
#pragma unroll
    for (int q = 0; q < kBatch; ++q) {
      if (line + q * step < end) to[(line + q * step) * to_step] = values[q];
    }
  }
}

// Rows [begin, begin + rows) of the tile, of the pixels of the image: no value of another is looked at.
template <typename T>
__device__ __forceinline__ void load_rows(const KmeansParams<T>& p, const KmeansScratch<T>& s, const Tile<T>& tile,
                                          int begin, int rows) {
  const int embedded = rows < p.channels - begin ? rows : p.channels - begin;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t step = p.embeddings.k;
  with_storage<T>(p.embeddings, [&](auto* data) {
    const auto* const x = data + tile.image * p.embeddings.b + begin * step;
    if (p.resized()) {
      for (int i = threadIdx.x; i < kTile; i += kThreads) {
        const bool wanted = i < tile.count;
        const auto* const cell = x + (wanted ? tile.places[i] : 0);
        const Steps<T> steps = wanted ? tile.steps[i] : Steps<T>{};
        copy_lines<2>(0, embedded, 1, tile.values + i, kStride,
                      [&](int c) { return interpolate(cell + c * step, steps); });
      }
    } else if (step == 1 && p.channels > 1) {  // channels-last: lanes along channels
      for (int c = lane; c < embedded; c += kWarp) {
        copy_lines<8>(warp, tile.count, kWarps, tile.values + c * kStride, 1,
                      [&](int i) { return widen<T>(x[tile.places[i] + c]); });
      }
    } else {
      for (int i = threadIdx.x; i < tile.count; i += kThreads) {
        const auto* const cell = x + tile.places[i];
        copy_lines<16>(0, embedded, 1, tile.values + i, kStride, [&](int c) { return widen<T>(cell[c * step]); });
      }
    }
  });
  const int at = p.channels - begin;  // of the two rows of the location
  if (at + 2 <= 0 || at >= rows || rows == 0 || !p.located()) return;
  for (int i = threadIdx.x; i < kTile; i += kThreads) {
    Point<T> point{0, 0};
    if (i < tile.count) {
      const int n = tile.first + i, W = static_cast<int>(p.x.labels);
      const T length = s.length[tile.image * p.pixels() + n];
      point = location_at(p, tile.image, n / W, n % W);
      point = {length * point.y, length * point.x};
    }
    if (at >= 0) tile.values[at * kStride + i] = point.y;
    if (at + 1 < rows) tile.values[(at + 1) * kStride + i] = point.x;
  }
}

// products[u][k] += <t, m_k> over `rows` rows, of the pixels of this thread.
template <typename T>
__device__ __forceinline__ void multiply(const Tile<T>& tile, int rows, T (&products)[kPerThread][kClusters<T>]) {
  using V = Vec<T>;
  const T* x = tile.values + threadIdx.x;
  const V* m = reinterpret_cast<const V*>(tile.centers);
#pragma unroll 2
  for (int j = 0; j < rows; ++j, x += kStride, m += kClusters<T> / V::kCount) {
    T values[kPerThread];
#pragma unroll
    for (int u = 0; u < kPerThread; ++u) values[u] = x[u * kThreads];
#pragma unroll
    for (int v = 0; v < kClusters<T> / V::kCount; ++v) {
      const V four = m[v];
#pragma unroll
      for (int i = 0; i < V::kCount; ++i) {
#pragma unroll
        for (int u = 0; u < kPerThread; ++u) products[u][v * V::kCount + i] += values[u] * four.values[i];
      }
    }
  }
}

// z = argmax_k <t, m_k>, the lowest of equals, -1 if no cluster has a pixel. `kept`: whether the only chunk of the only
// block of centers lies in shared memory already.
template <typename T>
__device__ __forceinline__ void find_nearest(const KmeansParams<T>& p, const KmeansScratch<T>& s, const KmeansLayout& l,
                                             const Tile<T>& tile, bool kept, int (&found)[kPerThread]) {
  constexpr int kBlock = kClusters<T>;
  const int J = p.dims();
  T best[kPerThread];
#pragma unroll
  for (int u = 0; u < kPerThread; ++u) {
    best[u] = -INFINITY;
    found[u] = -1;
  }
#pragma unroll 1
  for (int block = 0; block < l.blocks; ++block) {
    const int64_t at = tile.image * l.blocks + block;
    T products[kPerThread][kBlock];
#pragma unroll
    for (int k = 0; k < kBlock; ++k) {
      const T bias = s.bias[at * kBlock + k];
#pragma unroll
      for (int u = 0; u < kPerThread; ++u) products[u][k] = bias;
    }
#pragma unroll 1
    for (int chunk = 0; chunk < l.chunks; ++chunk) {
      const int begin = chunk * l.rows, rows = l.rows < J - begin ? l.rows : J - begin;
      const bool loads_rows = l.chunks > 1 || block == 0, loads_centers = !kept || l.chunks * l.blocks > 1;
      if (loads_rows || loads_centers) __syncthreads();
      if (loads_rows) load_rows(p, s, tile, begin, rows);
      if (loads_centers) {
        const T* const from = s.centers + (at * J + begin) * kBlock;
        for (int i = threadIdx.x; i < rows * kBlock; i += kThreads) tile.centers[i] = from[i];
      }
      if (loads_rows || loads_centers) __syncthreads();
      multiply(tile, rows, products);
    }
#pragma unroll
    for (int k = 0; k < kBlock; ++k) {
#pragma unroll
      for (int u = 0; u < kPerThread; ++u) {
        const bool more = products[u][k] > best[u];
        best[u] = more ? products[u][k] : best[u];
        found[u] = more ? block * kBlock + k : found[u];
      }
    }
  }
}

// sums[z] += [w t; 1] over the pixels [begin, end) of the tile, in order, by one warp, for kColumns columns from `first`
// on: `rows` are those of the tile, and one more counts pixels. A run of one cluster is added in registers.
template <typename T>
__device__ __forceinline__ void add_runs(const Tile<T>& tile, int rows, int columns, int first, int begin, int end,
                                         T* sums, int64_t stride) {
  const int j = first + threadIdx.x % kWarp, other = j + kWarp;
  const bool real = j < rows, real_other = other < rows;
  const T* const values = tile.values + (real ? j : 0) * kStride;
  const T* const others = tile.values + (real_other ? other : 0) * kStride;
  T sum = 0, sum_other = 0;
  int cluster = -1;
  const auto flush = [&] {
    T* const to = sums + cluster * stride;
    if (cluster >= 0 && j < columns) to[j] += sum;
    if (cluster >= 0 && other < columns) to[other] += sum_other;
  };
  for (int i = begin; i < end; ++i) {
    const int next = tile.clusters[i];
    if (next < 0) continue;
    if (next != cluster) {
      flush();
      cluster = next;
      sum = sum_other = 0;
    }
    const T weight = tile.weights[i];
    sum += real ? weight * values[i] : T(1);
    sum_other += real_other ? weight * others[i] : T(1);
  }
  flush();
}

// One pass over a part of an image: joins pixels to the nearest of the centers if `joins`, else they have their ids;
// adds them to the sums of the part if `adds`, else writes their ids.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3)
    step_kernel(KmeansParams<T> p, KmeansScratch<T> s, KmeansLayout l, bool joins, bool adds) {
  Tile<T> tile = lay_out<T>(l);
  const int part = blockIdx.x % l.parts, N = p.pixels(), J = p.dims(), W = static_cast<int>(p.x.labels);
  tile.image = blockIdx.x / l.parts;
  T* const share = s.sums + (tile.image * l.shares + part * (l.shares / l.parts)) * l.share_values;
  T* const sums = l.shared_sums ? tile.sums : share;
  if (adds) {
    for (int64_t i = threadIdx.x; i < l.copies * l.share_values; i += kThreads) sums[i] = 0;
  }
  const int begin = static_cast<int>(int64_t(l.tiles) * part / l.parts);
  const int end = static_cast<int>(int64_t(l.tiles) * (part + 1) / l.parts);
#pragma unroll 1
  for (int t = begin; t < end; ++t) {
    tile.first = t * kTile;
    tile.count = N - tile.first < kTile ? N - tile.first : kTile;
    __syncthreads();  // the tile before has been added
#pragma unroll
    for (int u = 0; u < kPerThread; ++u) {
      const int i = u * kThreads + threadIdx.x, n = tile.first + i;
      tile.weights[i] = T(-1);
      tile.clusters[i] = -1;
      if (i >= tile.count) continue;
      const int64_t place = tile.image * N + n;
      Steps<T> steps{};
      tile.places[i] = find_cells(p, n / W, n % W, steps);
      if (p.resized()) tile.steps[i] = steps;
      tile.weights[i] = s.weight[place];
      if (!joins) tile.clusters[i] = static_cast<int>(p.ids[place]);
    }
    if (joins) {
      int found[kPerThread];
      find_nearest(p, s, l, tile, t > begin, found);
#pragma unroll
      for (int u = 0; u < kPerThread; ++u) {
        const int i = u * kThreads + threadIdx.x;
        const int cluster = tile.weights[i] >= T(0) ? found[u] : -1;
        tile.clusters[i] = cluster;
        if (!adds && i < tile.count) p.ids[tile.image * N + tile.first + i] = cluster;
      }
    }
    if (!adds) continue;
#pragma unroll 1
    for (int chunk = 0; chunk < l.chunks; ++chunk) {
      const int from = chunk * l.rows, rows = l.rows < J - from ? l.rows : J - from;
      __syncthreads();
      if (l.chunks > 1 || !joins) {
        load_rows(p, s, tile, from, rows);
        __syncthreads();
      }
      const int columns = rows + (chunk == l.chunks - 1), span = kTile / l.copies;
      const int units = l.copies * static_cast<int>(ceil_div(columns, kColumns));
      for (int unit = threadIdx.x / kWarp; unit < units; unit += kWarps) {
        const int copy = unit % l.copies;
        add_runs(tile, rows, columns, unit / l.copies * kColumns, copy * span, (copy + 1) * span,
                 sums + copy * l.share_values + from, J + 1);
      }
    }
  }
  if (!adds || !l.shared_sums) return;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < l.share_values; i += kThreads) {
    T total = sums[i];
    for (int copy = 1; copy < l.copies; ++copy) total += sums[copy * l.share_values + i];
    share[i] = total;
  }
}

// m_k = sums_k / max(|sums_k|, eps), 0 for 0: a block takes a cluster, a thread a column, and adds the shares in order.
template <typename T>
__global__ void __launch_bounds__(256) center_kernel(KmeansParams<T> p, KmeansScratch<T> s, KmeansLayout l) {
  constexpr int kBlock = kClusters<T>;
  const int k = blockIdx.x % p.clusters, padded = l.blocks * kBlock, J = p.dims();
  const int64_t image = blockIdx.x / p.clusters;
  T* const centers = s.centers + image * padded * J;
  const auto center = [&](int cluster, int j) -> T& {
    return centers[(int64_t(cluster / kBlock) * J + j) * kBlock + cluster % kBlock];
  };
  const T* const shares = s.sums + image * l.shares * l.share_values + int64_t(k) * (J + 1);
  T square = 0, pixels = 0;
  for (int j = threadIdx.x; j <= J; j += blockDim.x) {
    T sum = 0;
#pragma unroll 16
    for (int share = 0; share < l.shares; ++share) sum += shares[share * l.share_values + j];
    if (j == J) {
      pixels = sum;
    } else {
      square += sum * sum;
      center(k, j) = sum;
    }
  }
  square = block_sum(square);
  pixels = block_sum(pixels);
  const T norm = sqrt(square), divisor = norm < p.eps ? p.eps : norm;
  for (int j = threadIdx.x; j < J; j += blockDim.x) {  // those that this thread wrote
    center(k, j) = square == T(0) ? T(0) : center(k, j) / divisor;
  }
  if (threadIdx.x == 0) s.bias[image * padded + k] = pixels > T(0) ? T(0) : T(-INFINITY);
  if (k < p.clusters - 1) return;
  for (int other = p.clusters + threadIdx.x; other < padded; other += blockDim.x) {
    s.bias[image * padded + other] = -INFINITY;
    for (int j = 0; j < J; ++j) center(other, j) = 0;
  }
}

}  // namespace metricseg::segments
