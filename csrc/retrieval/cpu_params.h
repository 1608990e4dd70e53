// A tile of products as plain data, and the loops of each vector width on it.
#pragma once

#include <cstdint>

#include "../common/by_type.h"

namespace metricseg::retrieval {

template <typename T>
struct Tile {
  const T* products;  // [rows, columns]
  const bool* valid;  // [columns] or null
  int64_t columns, k;
  int64_t first;     // index of the first column
  T* values;         // [rows, k] descending, -inf if there are fewer
  int64_t* indices;  // [rows, k]
};

// Rows [begin, end): the best of a row so far, and of this tile.
template <typename T>
using Loops = void (*)(const Tile<T>&, int64_t begin, int64_t end);

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::retrieval
