// The sorted and padded copies of both sides: 16 bytes at a time where rows allow, so that the walk reads whole words
// without masks. A block takes the rows of a tile, a warp one after another.
#pragma once

#include <limits>

#include "../../common/cuda/reduce.cuh"
#include "../../common/cuda/scalar.cuh"
#include "../../common/cuda/vec.cuh"
#include "rows.h"

namespace metricseg::row_pairs {

template <class P>
struct Gather {
  using T = typename P::T;
  Rows<T> from[2];
  Side<T> to[2];
  int row_bytes;
  bool words;  // rows are read 16 bytes at a time
};

// sum of squares of a row, after its copy
template <class P, typename Stored>
__device__ __forceinline__ typename P::T copy_row(const Gather<P>& g, const Stored* row, int64_t step, int64_t depth,
                                                  char* to) {
  using T = typename P::T;
  using Operand = typename P::Operand;
  const int lane = threadIdx.x % kWarp;
  auto* const out = reinterpret_cast<Operand*>(to);
  T sum = 0;
  const auto rounded = [&](Stored value) {
    const Operand operand = P::round(widen<T>(value));
    const T v = widen<T>(operand);
    sum += v * v;
    return operand;
  };
  if (sizeof(Stored) == sizeof(Operand) && g.words) {
    using V = Vec<Stored>;
    using W = Vec<Operand>;
    const int depth_words = static_cast<int>(depth / V::kCount), words = g.row_bytes / 16;
    for (int i = lane; i < words; i += kWarp) {
      W values{};
      if (i < depth_words) {
        const V loaded = reinterpret_cast<const V*>(row)[i];
#pragma unroll
        for (int v = 0; v < V::kCount; ++v) values.values[v] = rounded(loaded.values[v]);
      }
      reinterpret_cast<W*>(out)[i] = values;
    }
    return sum;
  }
  const int width = g.row_bytes / static_cast<int>(sizeof(Operand));
  for (int d = lane; d < width; d += kWarp) {
    Operand value{};
    if (d < depth) value = rounded(row[d * step]);
    out[d] = value;
  }
  return sum;
}

template <class P>
__global__ void __launch_bounds__(kThreads, 4) gather_kernel(Gather<P> g) {
  using T = typename P::T;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int which = static_cast<int>(blockIdx.x) < g.to[0].tiles ? 0 : 1;
  const Rows<T>& from = g.from[which];
  const Side<T>& to = g.to[which];
  const int tile = static_cast<int>(blockIdx.x) - which * g.to[0].tiles;
  int32_t ends[2] = {std::numeric_limits<int32_t>::min(), -1};  // the least group, negated, and the greatest
  T largest[2] = {};                                            // squared norm, |log weight|
  for (int i = threadIdx.x; i < P::kColumns; i += kThreads) {
    const int r = tile * P::kColumns + i;
    const bool known = r < from.count;
    const int32_t group = known ? from.groups[r] : -1;
    ends[0] = -group > ends[0] ? -group : ends[0];
    ends[1] = group > ends[1] ? group : ends[1];
    to.groups[r] = group;
    if (to.ids) to.ids[r] = known ? from.ids[r] : -1;
    if (!to.weights) continue;
    const T weight = known ? from.weights[r] : T(0), size = weight > T(0) ? std::fabs(std::log(weight)) : T(0);
    to.weights[r] = weight;
    largest[1] = size > largest[1] ? size : largest[1];
  }
  for (int i = warp; i < P::kColumns; i += kWarps) {
    const int r = tile * P::kColumns + i;
    char* const out = to.data + int64_t(r) * g.row_bytes;
    T sum = 0;
    if (r < from.count && from.groups[r] >= 0) {
      with_storage<T>(from.features, [&](auto* data) {
        sum = copy_row(g, data + from.order[r] * from.features.y, from.features.x, from.depth, out);
      });
    } else {  // whatever it holds
      for (int w = lane; w < g.row_bytes / 16; w += kWarp) reinterpret_cast<Vec<int32_t>*>(out)[w] = {};
    }
    sum = group_sum(sum, kWarp);
    largest[0] = sum > largest[0] ? sum : largest[0];
    if (lane == 0) to.squares[r] = sum;
  }
  block_max(ends);
  block_max(largest);
  if (threadIdx.x != 0) return;
  to.low[tile] = -ends[0];
  to.high[tile] = ends[1];
  to.top[tile] = largest[0];
  if (to.range) to.range[tile] = largest[1];
}

}  // namespace metricseg::row_pairs
