// The memory behind Slots, and what a call prepares before a walk.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "../../common/host/memory.h"
#include "cpu_params.h"

namespace metricseg::resized {

template <typename T>
struct SlotTable {
  std::vector<int32_t> column, x;
  std::vector<T> neighbor, right;

  SlotTable(const Axis& axis, int64_t lanes) {
    std::vector<int32_t> held(axis.cells, 0);  // labels that a cell has so far
    std::vector<int32_t> center(axis.labels);
    std::vector<int32_t> order(axis.labels);
    const int64_t groups = ceil_div(axis.cells, lanes);
    std::vector<int64_t> depth(groups, 0), first(groups + 1, 0);
    for (int64_t d = 0; d < axis.labels; ++d) {
      const int64_t cell = axis.cell(d);
      center[d] = static_cast<int32_t>(nearest_is_next(axis, d) ? cell + 1 : cell);
      order[d] = held[center[d]]++;
      int64_t& deepest = depth[center[d] / lanes];
      deepest = order[d] < deepest ? deepest : order[d] + 1;
    }
    for (int64_t g = 0; g < groups; ++g) first[g + 1] = first[g] + depth[g];
    const int64_t count = first[groups];
    column.resize(count);
    x.assign(count * lanes, -1);
    neighbor.assign(count * lanes, T(0));
    right.assign(count * lanes, T(-1));
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t s = first[g]; s < first[g + 1]; ++s) column[s] = static_cast<int32_t>(g * lanes);
    }
    for (int64_t d = 0; d < axis.labels; ++d) {
      const int64_t at = (first[center[d] / lanes] + order[d]) * lanes + center[d] % lanes;
      const T fraction = axis.template fraction<T>(d);
      const bool next = nearest_is_next(axis, d);
      x[at] = static_cast<int32_t>(d);
      // beyond the last cell's center there is nothing to blend with
      neighbor[at] = next ? T(1) - fraction : axis.cell(d) + 1 < axis.cells ? fraction : T(0);
      right[at] = next ? T(0) : T(1);
    }
  }

  // Whether label d is nearer to the right-hand cell of the two around it.
  static bool nearest_is_next(const Axis& axis, int64_t d) {
    return 2 * (axis.numerator(d) % axis.den) >= axis.den && axis.cell(d) + 1 < axis.cells;
  }

  Slots<T> view(bool blend) const {
    return {static_cast<int64_t>(column.size()), blend, column.data(), x.data(), neighbor.data(), right.data()};
  }
};

// Units of work that pay for a further thread: some 30,000 exponentials.
inline int64_t grain(const Maps& maps, int64_t units) {
  return 32768 / (maps.pixels() * maps.classes / std::max<int64_t>(units, 1) + 1) + 1;
}

// Without interpolation an image or a volume is one long row, if every map allows it.
inline void collapse(Maps& params, std::initializer_list<Map> maps) {
  const int64_t width = params.x.cells, height = params.y.cells, depth = params.z.cells;
  if (!params.identity() || !params.z.identity() || width == 0) return;
  for (const Map& map : maps) {
    if (map && (map.y != width * map.x || (depth > 1 && map.z != height * map.y))) return;
  }
  params.x.cells = params.x.labels = depth * height * width;
  params.y.cells = params.y.labels = params.z.cells = params.z.labels = 1;
}

// Fixes the axes of a walk; maps: all that it reads or writes, none to leave images two-dimensional. The table is the
// memory of params.slots.
template <typename T, typename Params>
SlotTable<T> prepare(Params& params, int64_t lanes, bool align_corners, std::initializer_list<Map> maps) {
  if (maps.size() > 0) collapse(params, maps);
  params.z = Axis::make(params.z.cells, params.z.labels, align_corners);
  params.x = Axis::make(params.x.cells, params.x.labels, align_corners);
  params.y = Axis::make(params.y.cells, params.y.labels, align_corners);
  SlotTable<T> table(direct(params) ? Axis{} : params.x, lanes);
  params.slots = table.view(!params.x.identity());
  return table;
}

}  // namespace metricseg::resized
