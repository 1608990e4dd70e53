// Division of a rectangle among the threads of a block: neighboring threads take neighboring places, row by row.
#pragma once

#include "scalar.cuh"

namespace metricseg {

// f(i, j) for every i in [0, rows), j in [0, columns); j runs along neighboring threads, or i if rows_fast.
template <typename F>
__device__ __forceinline__ void block_sweep(int rows, int columns, bool rows_fast, F f) {
  const int width = rows_fast ? rows : columns, height = rows_fast ? columns : rows;
  if (width <= 0) return;
  const unsigned threads = blockDim.x, thread = threadIdx.x;
  int fast = thread % width, slow = thread / width;
  const int step_fast = threads % width, step_slow = threads / width;
  while (slow < height) {
    f(rows_fast ? fast : slow, rows_fast ? slow : fast);
    fast += step_fast;
    slow += step_slow;
    if (fast >= width) {
      fast -= width;
      ++slow;
    }
  }
}

// A rectangle in memory, by the strides of a sweep.
template <typename Value, typename Stride>
struct Swept {
  Value* data;
  Stride fast, slow;
};

// to = from, for `height` rows of `width`, by Threads threads. Batch loads are issued before a store waits for the
// first of them: a loop of one load and one store would expose the latency of memory in every turn.
template <int Threads, int Batch, typename From, typename To>
__device__ __forceinline__ void block_copy(int width, int height, Swept<const From, int64_t> from, Swept<To, int> to) {
  if (width <= 0) return;
  const unsigned thread = threadIdx.x;
  const int step_fast = unsigned(Threads) % width, step_slow = unsigned(Threads) / width;
  int fast = thread % width, slow = thread / width;
  const From* source = from.data + (fast * from.fast + slow * from.slow);
  int place = fast * to.fast + slow * to.slow;
  // from one place of this thread to its next, in a row or with a wrap to one row further
  const int64_t source_step = step_fast * from.fast + step_slow * from.slow;
  const int64_t source_wrap = source_step + from.slow - width * from.fast;
  const int place_step = step_fast * to.fast + step_slow * to.slow;
  const int place_wrap = place_step + to.slow - width * to.fast;
#pragma unroll 1
  for (int left = width * height - static_cast<int>(thread); left > 0; left -= Batch * Threads) {
    From values[Batch];
    int places[Batch];
#pragma unroll
    for (int i = 0; i < Batch; ++i) {
      values[i] = left > i * Threads ? *source : From{};  // undefined it would stay in a register all the while
      places[i] = place;
      fast += step_fast;
      const bool wraps = fast >= width;
      fast -= wraps ? width : 0;
      source += wraps ? source_wrap : source_step;
      place += wraps ? place_wrap : place_step;
    }
#pragma unroll
    for (int i = 0; i < Batch; ++i) {
      if (left > i * Threads) to.data[places[i]] = widen<To>(values[i]);
    }
  }
}

}  // namespace metricseg
