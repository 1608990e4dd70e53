// Where a label lies among the cells of a map, and the choice of its class.
#pragma once

#include "sink.cuh"

namespace metricseg::predict {

constexpr int kThreads = 128;

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
  const int64_t n = axis.numerator(label), cell = n / axis.den;
  const T share = static_cast<T>(n - cell * axis.den) / static_cast<T>(axis.den);
  const bool alone = share == T(0) || axis.next(cell) == cell;
  return {cell, alone ? 0 : 1, alone ? T(0.5) : share};
}

template <typename T>
__device__ __forceinline__ Between<T> column_of(const CudaParams& p, int m, int64_t x) {
  return between<T>(p.x(m), p.sources[m].flipped ? p.width - 1 - x : x);
}

// The largest value so far and its class: NaN is larger than all, ties go to the lowest class.
template <typename T>
struct Best {
  T value = -std::numeric_limits<T>::infinity();
  int at = 0;

  __device__ __forceinline__ void take(T other, int k) {
    const bool better = !(other <= value) && value == value;
    value = better ? other : value;
    at = better ? k : at;
  }

  // The better of two whose classes come in any order.
  __device__ __forceinline__ void join(T other, int k) {
    const bool tie = other == value || (other != other && value != value);
    const bool better = tie ? k < at : other > value || other != other;
    value = better ? other : value;
    at = better ? k : at;
  }
};

// Tiles of a call, and the bytes of shared memory before the counts; -1: these are in global memory.
struct Tiles {
  int64_t across, down, all;
  int64_t shared_at;
};

// [K, K], or null.
__device__ __forceinline__ unsigned* shared_counts(const Tiles& tiles) {
  return tiles.shared_at < 0 ? nullptr : reinterpret_cast<unsigned*>(shared_memory<unsigned char>() + tiles.shared_at);
}

struct Place {
  int64_t image, row, column;  // of a tile
};

__device__ __forceinline__ Place place_of(const Tiles& tiles, int64_t tile) {
  return {tile / tiles.across / tiles.down, tile / tiles.across % tiles.down, tile % tiles.across};
}

template <typename T>
__device__ __forceinline__ T entropy_of(T p) {
  return p != T(0) ? -p * std::log(p) : T(0);
}

// Scores and label of a pixel.
template <typename T>
__device__ __forceinline__ void finish_pixel(const CudaParams& p, Sink& sink, int64_t image, int64_t y, int64_t x,
                                             bool inside, const Best<T>& best, T entropy) {
  const int64_t n = (image * p.height + y) * p.width + x;
  if (inside && p.confidence) p.confidence.template as<T>()[n] = best.value;
  if (inside && p.entropy) p.entropy.template as<T>()[n] = entropy;
  sink.take(image, y, x, inside, best.at);
}

}  // namespace metricseg::predict
