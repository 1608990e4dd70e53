// The other map at the pixels of a block of the walk, interpolated from rows of its cells, which a worker holds as T. A
// row is read once for all blocks between two rows of the walk's own map. Label rows that lie between the same two rows
// of cells share the horizontal blend: of shifted vectors if both maps are as wide, else of one permutation of two
// vectors of cells, or lane by lane if the other map is more than twice as wide.
#pragma once

#include "../engines/resized/cpu_blend.h"
#include "../engines/resized/cpu_pixels.h"
#include "cpu_params.h"

namespace metricseg::distill {
namespace METRICSEG_SIMD {

using namespace resized::METRICSEG_SIMD;

// A vector of label columns, out of two vectors of cells (near) or lane by lane.
template <typename T, bool near>
struct FreeColumn {
  using V = Lanes<T>;
  static constexpr int N = V::count;

  int64_t first;
  bool blend;
  typename V::Bits center, neighbor;
  V side, rest;

  METRICSEG_HD FreeColumn(const Columns<T>& columns, int64_t v)
      : first(columns.first[v]), blend(columns.blend), side(V::load(columns.side + v * N)), rest(V(T(1)) - side) {
    std::memcpy(&center, columns.center + v * N, sizeof center);
    std::memcpy(&neighbor, columns.neighbor + v * N, sizeof neighbor);
  }

  METRICSEG_HD V of(const T* cells) const {
    if constexpr (near) {
      const V low = V::load(cells), high = V::load(cells + N);
      const V c = permute(low, high, center);
      return blend ? rest * c + side * permute(low, high, neighbor) : c;
    } else {
      V c, n;
      for (int i = 0; i < N; ++i) {
        c.v[i] = cells[center[i]];
        n.v[i] = cells[neighbor[i]];
      }
      return blend ? rest * c + side * n : c;
    }
  }
};

template <typename T>
class OtherMap {
  static constexpr int N = Lanes<T>::count;

  const CpuParams<T>& params;
  const int64_t K, stride, held;
  T* rows;           // [held, K, stride], cell c at c + kMaxLanes; row y of an image in place y % held
  int64_t holds[8];  // the row of the batch in each place, or -1

 public:
  OtherMap(const CpuParams<T>& params, T* memory)
      : params(params), K(params.classes), stride(params.other_stride()), held(params.other_rows()), rows(memory) {
    if (!params.copies()) std::memset(rows, 0, sizeof(T) * params.other_values());
    for (int64_t& row : holds) row = -1;
  }

  // out [K, P, N] and the maximum over K [P, N]; any number in an idle lane.
  void interpolate(const Block& block, T* out, T* max_out) {
    if (params.copies()) return copy(block, out, max_out);
    int label_rows = 1;  // of each vector of label columns
    while (label_rows < block.vectors && block.x[label_rows] == block.x[0]) ++label_rows;
    for (int r = 0; r < label_rows;) {
      const int64_t cell = params.other_y.cell(block.y[r]);
      int end = r + 1;
      while (end < label_rows && params.other_y.cell(block.y[end]) == cell) ++end;
      switch (end - r) {
        case 1:
          between<1>(block, cell, r, label_rows, out, max_out);
          break;
        case 2:
          between<2>(block, cell, r, label_rows, out, max_out);
          break;
        case 3:
          between<3>(block, cell, r, label_rows, out, max_out);
          break;
        default:
          between<4>(block, cell, r, label_rows, out, max_out);
      }
      r = end;
    }
  }

 private:
  // Label rows [r, r + R) of the block, of `label_rows`, all between rows `cell` and cell + 1.
  template <int R>
  void between(const Block& block, int64_t cell, int r, int label_rows, T* out, T* max_out) {
    const bool blend_rows = !params.other_y.identity() && cell + 1 < params.other_y.cells;
    T lower[R];
    for (int i = 0; i < R; ++i) lower[i] = blend_rows ? params.other_y.template fraction<T>(block.y[r + i]) : T(0);
    const T* const top = row(block.image, cell);
    const T* const bottom = blend_rows ? row(block.image, cell + 1) : top;
    const auto at = [&](const auto& column, int p) {
      blend<R>(column, top + column.first, bottom + column.first, K, stride, blend_rows, lower, block.vectors,
               out + p * N, max_out + p * N);
    };
    for (int p = r; p < block.vectors; p += label_rows) {
      const int64_t v = params.identity() ? block.x0 / N + p : (block.x[p] - params.slots.x) / N;
      if (params.same_slots) {
        at(SlotColumn<T>(params.slots, v), p);
      } else if (params.columns.near) {
        at(FreeColumn<T, true>(params.columns, v), p);
      } else {
        at(FreeColumn<T, false>(params.columns, v), p);
      }
    }
  }

  // Both maps have label size: a run of pixels of one row.
  void copy(const Block& block, T* out, T* max_out) const {
    using V = Lanes<T>;
    const int64_t padded = int64_t{block.vectors} * N, left = params.x.cells - block.x0;
    const int64_t n = left < padded ? left : padded;
    for (int64_t i = 0; i < padded; i += N) V(-std::numeric_limits<T>::infinity()).store(max_out + i);
    for (int64_t k = 0; k < K; ++k, out += padded) {
      read(params.other.type, params.other.at(block.image, k, block.y[0], block.x0), params.other.x, n, out);
      for (int64_t i = n; i < padded; ++i) out[i] = T(0);
      for (int64_t i = 0; i < padded; i += N) max(V::load(out + i), V::load(max_out + i)).store(max_out + i);
    }
  }

  // [K, stride], from cell 0 on
  const T* row(int64_t image, int64_t y) {
    const int64_t place = y % held, id = image * params.other_y.cells + y;
    T* const cells = rows + place * K * stride + resized::kMaxLanes;
    if (holds[place] != id) {
      holds[place] = id;
      for (int64_t k = 0; k < K; ++k) {
        read(params.other.type, params.other.at(image, k, y, 0), params.other.x, params.other_x.cells,
             cells + k * stride);
      }
    }
    return cells;
  }
};

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::distill
