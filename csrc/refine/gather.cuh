// Refined upsampling on CUDA, and the gradient of each pixel's displacement. A block takes a tile of 64 pixels: 64 threads
// locate them, then all share the pixels' channels. In NCHW a lane is a pixel and takes 8 channels at a time; in
// channels-last maps lanes run along channels, 16 bytes each. Cells are read in place: neighbors find them in L1.
#pragma once

#include <type_traits>

#include "../common/cuda/vec.cuh"
#include "locate.cuh"

namespace metricseg::refine {

constexpr int kThreads = 256, kPixels = 64, kTileColumns = 16;
constexpr int kGroups = kThreads / kPixels;  // of channels, if lanes are pixels

// N channels of a pixel from `from` on: `step` apart, or side by side and read as 16 bytes.
template <bool vector, int N, typename Stored>
__device__ __forceinline__ void load(const Stored* from, int64_t step, Stored (&values)[N]) {
  if constexpr (vector) {
    const auto whole = *reinterpret_cast<const Vec<Stored>*>(from);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = whole.values[j];
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = from[j * step];
  }
}

template <bool vector, int N, typename Stored, typename T>
__device__ __forceinline__ void store(const T (&values)[N], Stored* to, int64_t step) {
  Vec<Stored> whole;
#pragma unroll
  for (int j = 0; j < N; ++j) narrow(values[j], vector ? whole.values[j] : to[j * step]);
  if constexpr (vector) *reinterpret_cast<Vec<Stored>*>(to) = whole;
}

using Adjacent = std::integral_constant<int64_t, 1>;

// How a lane reads cells: as vectors along channels or not; and the steps in memory to the next row, channel and column.
// Adjacent columns are known to the compiler, which folds them into its addresses.
template <bool is_vector, int N, typename Column>
struct Access {
  static constexpr bool vector = is_vector;
  static constexpr int count = N;  // channels at once
  int64_t row, channel;
  Column column;
};

template <bool vector, int N, typename Column>
__device__ __forceinline__ Access<vector, N, Column> access(const Map& map, Column column) {
  return {map.y, map.k, column};
}

// f(q, j, value) for the cells q of a row that are wanted, and their channels j.
template <typename A, typename Stored, typename F>
__device__ __forceinline__ void each_cell(const A& access, const Stored* row, const bool (&wanted)[3], F f) {
  if constexpr (A::vector) {
#pragma unroll
    for (int q = 0; q < 3; ++q) {
      if (!wanted[q]) continue;
      Stored values[A::count];
      load<true>(row + q * access.column, 1, values);
#pragma unroll
      for (int j = 0; j < A::count; ++j) f(q, j, values[j]);
    }
  } else {
#pragma unroll
    for (int j = 0; j < A::count; ++j, row += access.channel) {
#pragma unroll
      for (int q = 0; q < 3; ++q) {
        if (wanted[q]) f(q, j, row[q * access.column]);
      }
    }
  }
}

// sum_j += sum of weight x_j over the cells that weigh, of channels from x on. The loop over rows of cells stays a loop,
// and their weights in shared memory, for the sake of registers.
template <typename T, typename A, typename Stored>
__device__ __forceinline__ void add_cells(const Located<T>& at, const A& access, const Stored* x, T (&sum)[A::count]) {
#pragma unroll 1
  for (int r = 0; r < 3; ++r, x += access.row) {
    T weight[3];
    bool wanted[3];
#pragma unroll
    for (int q = 0; q < 3; ++q) {
      weight[q] = at.y.weight[r] * at.x.weight[q];
      wanted[q] = weight[q] != T(0);
    }
    each_cell(access, x, wanted, [&](int q, int j, Stored value) { sum[j] += weight[q] * widen<T>(value); });
  }
}

// total += g (d/dy, d/dx) of the sums above, of channels from x and g on
template <typename T, typename A, typename Stored>
__device__ __forceinline__ void add_slopes(const Located<T>& at, const A& access, const Stored* x, const Stored* g,
                                           int64_t g_step, Point<T>& total) {
  T y_sum[A::count] = {}, x_sum[A::count] = {};
#pragma unroll 1
  for (int r = 0; r < 3; ++r, x += access.row) {
    T by_y[3], by_x[3];
    bool wanted[3];
#pragma unroll
    for (int q = 0; q < 3; ++q) {
      by_y[q] = at.y.slope[r] * at.x.weight[q];
      by_x[q] = at.y.weight[r] * at.x.slope[q];
      wanted[q] = by_y[q] != T(0) || by_x[q] != T(0);
    }
    each_cell(access, x, wanted, [&](int q, int j, Stored value) {
      y_sum[j] += by_y[q] * widen<T>(value);
      x_sum[j] += by_x[q] * widen<T>(value);
    });
  }
  Stored gradient[A::count];
  load<A::vector>(g, g_step, gradient);
#pragma unroll
  for (int j = 0; j < A::count; ++j) {
    const T value = widen<T>(gradient[j]);
    total.y += value * y_sum[j];
    total.x += value * x_sum[j];
  }
}

// Locates the pixels of a tile, in shared memory; those beyond the map are left out.
template <typename T>
__device__ __forceinline__ const Located<T>* locate_tile(const RefineParams<T>& p, const Tiling& t) {
  auto* const located = shared_memory<Located<T>>();
  if (threadIdx.x < kPixels) {
    const Pixel at = pixel_of(p, t, blockIdx.x, threadIdx.x);
    if (at.inside) {
      const Located<T> own = locate(p, at);
      located[threadIdx.x] = own;
    }
  }
  __syncthreads();
  return located;
}

// f(access, c) for the channels of the pixel of a lane, from c on; the groups of threads take turns.
template <typename F>
__device__ __forceinline__ void each_channel(const Map& map, int64_t channels, F f) {
  const auto walk = [&](auto column, auto count) {
    int64_t c = threadIdx.x / kPixels * count.value;
    for (; c + count.value <= channels; c += kGroups * count.value) f(access<false, count.value>(map, column), c);
    for (; c < channels; ++c) f(access<false, 1>(map, column), c);
  };
  if (map.x == 1) {
    walk(Adjacent(), std::integral_constant<int, 8>());
  } else {
    walk(map.x, std::integral_constant<int, 4>());  // more addresses
  }
}

// The same for lanes along channels, `width` of them a pixel, in vectors of Stored or not.
template <typename Stored, typename F>
__device__ __forceinline__ void each_channel(const Map& map, int64_t channels, const Lanes& lanes, F f) {
  constexpr int kCount = Vec<Stored>::kCount;
  const int64_t lane = threadIdx.x % lanes.width;
  if (lanes.vectors) {
    for (int64_t c = lane * kCount; c < channels; c += lanes.width * kCount) f(access<true, kCount>(map, map.x), c);
  } else {
    for (int64_t c = lane; c < channels; c += lanes.width) f(access<false, 1>(map, map.x), c);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    upsample_kernel(RefineParams<T> p, Tiling t, Lanes lanes) {
  const Located<T>* const located = locate_tile(p, t);
  with_storage<T>(p.features, [&](auto* features) {
    using Stored = std::remove_pointer_t<decltype(features)>;
    const auto upsample = [&](const Pixel& at, const Located<T>& l) {
      const Stored* const x = features + p.features.offset(at.image, 0, l.y.first, l.x.first);
      Stored* const out = p.output.template as<Stored>() + p.output.offset(at.image, 0, at.row, at.column);
      return [&p, &l, x, out](const auto& access, int64_t c) {
        using A = std::decay_t<decltype(access)>;
        T sum[A::count];
#pragma unroll
        for (T& value : sum) value = l.state == State::nan ? T(NAN) : T(0);
        add_cells(l, access, x + c * p.features.k, sum);
        store<A::vector>(sum, out + c * p.output.k, p.output.k);
      };
    };
    if (lanes.along_channels) {
      for (int i = threadIdx.x / lanes.width; i < kPixels; i += kThreads / lanes.width) {
        const Pixel at = pixel_of(p, t, blockIdx.x, i);
        if (at.inside) each_channel<Stored>(p.features, p.channels, lanes, upsample(at, located[i]));
      }
    } else {
      const int i = threadIdx.x % kPixels;
      const Pixel at = pixel_of(p, t, blockIdx.x, i);
      if (at.inside) each_channel(p.features, p.channels, upsample(at, located[i]));
    }
  });
}

// slopes [B, 2, N] = d, the gradient of the displacement of each pixel
template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 3)
    slope_kernel(RefineParams<T> p, Tiling t, Lanes lanes, T* slopes) {
  const Located<T>* const located = locate_tile(p, t);
  const auto write = [&](const Pixel& at, State state, const Point<T>& d) {
    T* const to = slopes + at.image * 2 * p.pixels() + at.row * p.x.labels + at.column;
    to[0] = state == State::finite ? d.y : T(0);
    to[p.pixels()] = state == State::finite ? d.x : T(0);
  };
  const auto add = [&](auto* features, const Pixel& at, const Located<T>& l, Point<T>& total) {
    const auto* const x = features + p.features.offset(at.image, 0, l.y.first, l.x.first);
    const auto* const g =
        reinterpret_cast<decltype(x)>(p.output.data) + p.output.offset(at.image, 0, at.row, at.column);
    return [&p, &l, &total, x, g](const auto& access, int64_t c) {
      add_slopes(l, access, x + c * p.features.k, g + c * p.output.k, p.output.k, total);
    };
  };
  if (lanes.along_channels) {
    for (int first = 0; first < kPixels; first += kThreads / lanes.width) {
      const int i = first + threadIdx.x / lanes.width;
      const Pixel at = pixel_of(p, t, blockIdx.x, i);  // beyond the tile it is not inside
      Point<T> total{0, 0};
      with_storage<T>(p.features, [&](auto* features) {
        using Stored = std::remove_pointer_t<decltype(features)>;
        if (at.inside) each_channel<Stored>(p.features, p.channels, lanes, add(features, at, located[i], total));
      });
      total = {group_sum(total.y, lanes.width), group_sum(total.x, lanes.width)};
      if (at.inside && threadIdx.x % lanes.width == 0) write(at, located[i].state, total);
    }
    return;
  }
  auto* const parts = reinterpret_cast<Point<T>*>(shared_memory<Located<T>>() + kPixels);  // [kGroups, kPixels]
  const int i = threadIdx.x % kPixels;
  const Pixel at = pixel_of(p, t, blockIdx.x, i);
  Point<T> total{0, 0};
  with_storage<T>(p.features, [&](auto* features) {
    if (at.inside) each_channel(p.features, p.channels, add(features, at, located[i], total));
  });
  parts[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x >= kPixels || !at.inside) return;
  for (int group = 1; group < kGroups; ++group) {
    total.y += parts[group * kPixels + i].y;
    total.x += parts[group * kPixels + i].x;
  }
  write(at, located[i].state, total);
}

}  // namespace metricseg::refine
