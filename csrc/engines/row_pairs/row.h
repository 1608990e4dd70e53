// A row of a tile, as the epilogues of one vector width see it. Its columns are visited chunk by chunk. Where rows are
// sorted by label most chunks hold negatives only, and nothing is compared there. A chunk with a border of groups, or
// of a set that is not sorted, goes through masks.
#pragma once

#include "../../common/simd/lanes.h"
#include "tile.h"

namespace metricseg::row_pairs {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

template <typename T>
METRICSEG_HD typename Register<T>::Bits load_integers(const int32_t* p) {
  typedef int32_t Narrow __attribute__((vector_size(METRICSEG_SIMD_BYTES / sizeof(T) * sizeof(int32_t))));
  Narrow values;
  std::memcpy(&values, p, sizeof values);
  return __builtin_convertvector(values, typename Register<T>::Bits);
}

template <typename T>
METRICSEG_HD T largest_of(Lanes<T> x) {
  T m = x.v[0];
  for (int i = 1; i < Lanes<T>::count; ++i) m = x.v[i] > m ? x.v[i] : m;
  return m;
}

template <typename T>
class Row {
 protected:
  using V = Lanes<T>;
  static constexpr int N = V::count;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

  struct Pairs {
    Mask<T> positive, negative;
  };

  const Tile<T>& tile;
  const int32_t group, id;  // group -1: the row takes no part
  T* const s;               // [columns]
  const T* const coefs;     // of this row, or null
  T* const out;             // sums of this row, or null

  METRICSEG_HD Row(const Tile<T>& tile, int64_t r)
      : tile(tile),
        group(tile.x_groups[r]),
        id(tile.x_ids ? tile.x_ids[r] : 0),
        s(tile.s + r * tile.columns),
        coefs(tile.x_coefs ? tile.x_coefs + r * tile.x_coefs_row : nullptr),
        out(tile.x_out ? tile.x_out + r * tile.x_out_row : nullptr) {}

  // f(column, known to be negative) on every vector of columns in a chunk that is not wholly absent.
  template <typename F>
  METRICSEG_HD void visit(const F& f, bool negatives = true) const {
    for (int64_t begin = 0, chunk = 0; begin < tile.columns; begin += kChunk, ++chunk) {
      const int64_t end = begin + kChunk < tile.columns ? begin + kChunk : tile.columns;
      const int32_t low = tile.lowest[chunk], high = tile.highest[chunk];
      if (high < 0) continue;
      if (group < low || group > high) {
        if (!negatives) continue;
        if (low >= 0) {
          for (int64_t j = begin; j < end; j += N) f(j, true);
          continue;
        }
      }
      for (int64_t j = begin; j < end; j += N) f(j, false);
    }
  }

  // S = f(column, known to be negative) on every vector of columns; 0 where a row or a chunk takes no part.
  template <typename F>
  METRICSEG_HD void replace(const F& f) const {
    for (int64_t begin = 0, chunk = 0; begin < tile.columns; begin += kChunk, ++chunk) {
      if (group >= 0 && tile.highest[chunk] >= 0) continue;
      const int64_t end = begin + kChunk < tile.columns ? begin + kChunk : tile.columns;
      for (int64_t j = begin; j < end; j += N) V(T(0)).store(s + j);
    }
    if (group >= 0) visit([&](int64_t j, bool negative) { f(j, negative).store(s + j); });
  }

  METRICSEG_HD Pairs pairs(int64_t j) const {
    using Bits = typename Register<T>::Bits;
    const Bits groups = load_integers<T>(tile.y_groups + j);
    const Bits same = groups == (Bits{} + group);
    const Bits self = tile.y_ids ? same & (load_integers<T>(tile.y_ids + j) == (Bits{} + id)) : Bits{};
    return {{same & ~self}, {(groups >= 0) & ~same}};
  }

  METRICSEG_HD V product(int64_t j) const { return V::load(s + j); }
  // A coefficient of the columns.
  METRICSEG_HD V y_coef(int coef, int64_t j) const { return V::load(tile.y_coefs + coef * tile.y_coefs_row + j); }
  METRICSEG_HD V y_weight(int64_t j) const { return V::load(tile.y_weights + j); }
  // A tile that serves its columns adds the same numbers there.
  METRICSEG_HD bool serves_columns() const { return tile.y_out != nullptr; }
  METRICSEG_HD void add_to_columns(int sum, int64_t j, V value) const {
    T* const p = tile.y_out + sum * tile.columns + j;
    (V::load(p) + value).store(p);
  }
};

// Rows [begin, end) of a tile, each by one function of an epilogue, which is a Row.
template <typename T, typename Epilogue, void (Epilogue::*phase)() const>
void run(const Tile<T>& tile, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) (Epilogue(tile, r).*phase)();
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::row_pairs
