// The k largest of each row, kept in order. Most columns fail one comparison of a vector with the least value kept; only
// a run of kRun columns with a larger one is looked at by itself.
#pragma once

#include "../common/simd/lanes.h"
#include "cpu_params.h"

namespace metricseg::retrieval {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

constexpr int64_t kRun = 64;  // columns

// Puts a value behind those that are not smaller. NaN was never larger.
template <typename T>
METRICSEG_HD void insert(T value, int64_t index, int64_t k, T* values, int64_t* indices) {
  int64_t i = k - 1;
  for (; i > 0 && values[i - 1] < value; --i) {
    values[i] = values[i - 1];
    indices[i] = indices[i - 1];
  }
  values[i] = value;
  indices[i] = index;
}

template <typename T>
METRICSEG_HD bool any_above(const T* s, T bound) {
  using V = Lanes<T>;
  typename V::Bits above{};
  for (int64_t j = 0; j < kRun; j += V::count) above |= (V::load(s + j) > V(bound)).bits;
  uint64_t words[sizeof above / sizeof(uint64_t)], any = 0;
  std::memcpy(words, &above, sizeof above);
  for (const uint64_t word : words) any |= word;
  return any != 0;
}

template <typename T>
void keep_best(const Tile<T>& tile, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const T* const s = tile.products + r * tile.columns;
    T* const values = tile.values + r * tile.k;
    int64_t* const indices = tile.indices + r * tile.k;
    const T& least = values[tile.k - 1];
    for (int64_t run = 0; run < tile.columns; run += kRun) {
      const bool whole = run + kRun <= tile.columns;
      if (whole && !any_above(s + run, least)) continue;
      const int64_t stop = whole ? run + kRun : tile.columns;
      for (int64_t j = run; j < stop; ++j) {
        if (s[j] > least && (!tile.valid || tile.valid[j])) insert(s[j], tile.first + j, tile.k, values, indices);
      }
    }
  }
}

template <typename T>
constexpr Loops<T> loops = keep_best<T>;

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::retrieval
