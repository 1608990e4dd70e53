// Labels out of low-resolution logits on CUDA, without logits at label size. A block takes 128 label columns, a thread
// each. `best_logit_kernel`: one map; up to R label rows between two rows of cells, which are blended once for all.
// `best_probability_kernel`: one row; a first walk over the classes leaves the maximum and the sum of the softmax of
// each map in shared memory, a second one interpolates again, averages, and takes the largest. Derivation:
// docs/kernels/predict.md.
#pragma once

#include "sink.cuh"

namespace metricseg::predict {

constexpr int kThreads = 128;
constexpr int kClasses = 8;  // of a turn of the walks

// Groups of label rows: single rows, or parts of the intervals between two rows of cells, which count from -1.
struct Rows {
  int64_t groups, tiles, all;  // tiles: of columns; all: tiles of all groups of all images
  int parts;
  int64_t shared_at;  // bytes of shared memory before the counts; -1: there are none
};

// Two cells of a label along an axis, and the share of the second; the same cell twice where there is nothing to blend:
// a weight of 0 would make NaN of an infinity.
template <typename T>
struct Between {
  int64_t cell;
  int step;
  T share;
};

template <typename T>
__device__ __forceinline__ Between<T> between(const Axis& axis, int64_t label) {
  const int64_t cell = axis.cell(label);
  const T share = axis.fraction<T>(label);
  const bool alone = share == T(0) || axis.next(cell) == cell;
  return {cell, alone ? 0 : 1, alone ? T(0.5) : share};
}

template <typename T>
__device__ __forceinline__ Between<T> column_of(const CudaParams& p, int m, int64_t x) {
  return between<T>(p.x(m), p.sources[m].flipped ? p.width - 1 - x : x);
}

template <typename T>
__device__ __forceinline__ T mix(T a, T b, T share) {
  return (T(1) - share) * a + share * b;
}

// The largest value so far and its class: NaN is larger than all, ties go to the lowest class.
template <typename T>
struct Best {
  T value = -std::numeric_limits<T>::infinity();
  int at = 0;

  __device__ __forceinline__ void take(T other, int k) {
    const bool better = other > value || (other != other && value == value);
    value = better ? other : value;
    at = better ? k : at;
  }
};

// The first label row of an interval.
__device__ __forceinline__ int64_t first_row(const Axis& axis, int64_t interval) {
  if (interval != 0) return axis.first(interval);
  return axis.add < 0 ? ceil_div(-axis.add, axis.mul) : 0;
}

// [K, K], or null if they are counted in global memory.
__device__ __forceinline__ unsigned* shared_counts(const Rows& rows) {
  return rows.shared_at < 0 ? nullptr : reinterpret_cast<unsigned*>(shared_memory<unsigned char>() + rows.shared_at);
}

template <typename T, int R>
__global__ void __launch_bounds__(kThreads, 4) best_logit_kernel(CudaParams p, Rows rows) {
  const MapSource& source = p.sources[0];
  const Axis axis = p.y(0);
  Sink sink(p, shared_counts(rows));
  for (int64_t tile = blockIdx.x; tile < rows.all; tile += gridDim.x) {
    const int64_t x = tile % rows.tiles * kThreads + threadIdx.x, group = tile / rows.tiles % rows.groups;
    const int64_t image = tile / rows.tiles / rows.groups, interval = group / rows.parts - 1;
    const int64_t begin = R == 1 ? group : first_row(axis, interval) + group % rows.parts * R;
    const int64_t end = R == 1 ? group + 1 : first_row(axis, interval + 1);
    if (begin >= end) continue;
    const bool inside = x < p.width;
    const Between<T> column = column_of<T>(p, 0, inside ? x : p.width - 1);
    const int64_t cell = axis.cell(begin), below = axis.next(cell) - cell;
    T share[R];
    Best<T> best[R];
#pragma unroll
    for (int r = 0; r < R; ++r) share[r] = below > 0 && begin + r < end ? axis.fraction<T>(begin + r) : T(0);
    with_storage<T>(source.map, [&](auto* data) {
      const auto* at = data + source.map.offset(image, 0, cell, column.cell);
      const int64_t down = below * source.map.y, right = column.step * source.map.x, k_step = source.map.k;
#pragma unroll 4
      for (int k = 0; k < p.classes; ++k, at += k_step) {
        const T top = mix(widen<T>(at[0]), widen<T>(at[right]), column.share);
        const T bottom = mix(widen<T>(at[down]), widen<T>(at[down + right]), column.share);
#pragma unroll
        for (int r = 0; r < R; ++r) best[r].take(share[r] == T(0) ? top : mix(top, bottom, share[r]), k);
      }
    });
#pragma unroll
    for (int r = 0; r < R; ++r) sink.take(image, begin + r, x, inside && begin + r < end, best[r].at);
  }
  sink.finish();
}

// A row of labels on a map: offset of its upper row of cells, way to the lower one.
template <typename T>
struct RowOfMap {
  int64_t offset, down;
  T share;
};

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

template <typename T>
__global__ void __launch_bounds__(kThreads, 4) best_probability_kernel(CudaParams p, Rows rows) {
  auto* const pixels = shared_memory<PixelOfMap<T>>() + threadIdx.x;  // [maps, kThreads]
  auto* const table = reinterpret_cast<RowOfMap<T>*>(shared_memory<PixelOfMap<T>>() + p.maps * kThreads);  // [maps]
  const T low = -std::numeric_limits<T>::infinity();
  Sink sink(p, shared_counts(rows));
  for (int64_t tile = blockIdx.x; tile < rows.all; tile += gridDim.x) {
    const int64_t x = tile % rows.tiles * kThreads + threadIdx.x, y = tile / rows.tiles % rows.groups;
    const int64_t image = tile / rows.tiles / rows.groups;
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
          if (p.entropy && k0 + i < p.classes && sums[i] != T(0)) entropy -= sums[i] * std::log(sums[i]);
        }
      }
    });
    const int64_t n = (image * p.height + y) * p.width + x;
    if (inside && p.confidence) p.confidence.template as<T>()[n] = best.value;
    if (inside && p.entropy) p.entropy.template as<T>()[n] = entropy;
    sink.take(image, y, x, inside, best.at);
  }
  sink.finish();
}

}  // namespace metricseg::predict
