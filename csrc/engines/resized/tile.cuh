// Geometry of the tile walk: tiles of cells, chunks of label columns, the place of a thread, and the steps from label row
// to label row. All coordinates are exact integers.
#pragma once

#include "../../common/macros.h"
#include "launch_config.h"

namespace metricseg::resized {

// Tile and chunk are kept in shared memory, like all values common to a block: registers limit the walk.
struct Tile {
  int64_t image;
  int class0;
  int y0, y1, x0, x1;  // cells [y0, y1) x [x0, x1)
};

__device__ __forceinline__ Tile tile_at(const LaunchConfig& config, const Axis& y, const Axis& x, int64_t block) {
  Tile t;
  const int tx = static_cast<int>(block % config.tiles_x);
  block /= config.tiles_x;
  const int ty = static_cast<int>(block % config.tiles_y);
  block /= config.tiles_y;
  t.class0 = static_cast<int>(block % config.class_chunks) * config.span;
  t.image = block / config.class_chunks;
  t.y0 = ty * config.tile_y;
  t.x0 = tx * config.tile_x;
  t.y1 = static_cast<int>(min(static_cast<int64_t>(t.y0) + config.tile_y, y.cells));
  t.x1 = static_cast<int>(min(static_cast<int64_t>(t.x0) + config.tile_x, x.cells));
  return t;
}

// Label columns [x0, x1) of one pass. Cells [done, complete) get their last contribution here.
struct Chunk {
  int x0, x1, x_end;  // x_end: end of the tile's columns
  int cell0, cells;   // the cells that the columns touch
  int done, complete;
  bool continues;  // whether an earlier chunk left partial sums of cells done and done + 1
};

__device__ __forceinline__ Chunk chunk_from(const LaunchConfig& config, const Axis& axis, const Tile& tile, Chunk c) {
  c.x1 = c.x_end;
  c.complete = tile.x1;
  c.cells = 0;
  if (c.x0 >= c.x_end) return c;
  c.cell0 = static_cast<int>(axis.cell(c.x0));
  const int64_t limit = min(static_cast<int64_t>(c.x0) + config.columns, axis.first(c.cell0 + config.staged - 1));
  c.x1 = static_cast<int>(min(static_cast<int64_t>(c.x_end), limit));
  c.cells = static_cast<int>(axis.next(axis.cell(c.x1 - 1))) + 1 - c.cell0;
  if (c.x1 < c.x_end) {
    const int64_t open = max(axis.cell(c.x1), static_cast<int64_t>(c.done));
    c.complete = static_cast<int>(min(open, static_cast<int64_t>(tile.x1)));
  }
  return c;
}

__device__ __forceinline__ Chunk first_chunk(const LaunchConfig& config, const Axis& axis, const Tile& tile) {
  Chunk c{};
  c.x0 = static_cast<int>(axis.first(tile.x0 - config.halo_x));
  c.x_end = static_cast<int>(axis.first(tile.x1));
  c.done = tile.x0;
  return chunk_from(config, axis, tile, c);
}

__device__ __forceinline__ Chunk next_chunk(const LaunchConfig& config, const Axis& axis, const Tile& tile, Chunk c) {
  c.x0 = c.x1;
  c.done = c.complete;
  c.continues = true;
  return chunk_from(config, axis, tile, c);
}

// The place of a thread: one label column, and the KT classes from class0 on.
template <typename T>
struct Fragment {
  int class0;            // of the image
  int local;             // the same, counted from the block's first class
  int x;                 // label column
  int64_t label_offset;  // of its label in row 0
  int left, right;       // cells around it, within the chunk
  int slot;              // its place in the staged gradient
  bool active;           // whether it has a label column in this chunk
  bool owned;            // whether that column's cell belongs to the tile: it then counts the loss
  T fx;                  // weight of the right one in a blend; `fold_row` computes it anew
};

template <typename T, typename Params>
__device__ __forceinline__ Fragment<T> fragment_at(const Params& p, const LaunchConfig& config, const Tile& tile,
                                                   const Chunk& chunk) {
  const Axis& axis = p.x;
  Fragment<T> fragment{};
  const int column = threadIdx.x / config.groups;
  fragment.local = threadIdx.x % config.groups * config.kt;
  fragment.class0 = tile.class0 + fragment.local;
  fragment.active = chunk.x0 + column < chunk.x1;
  if (chunk.x0 >= chunk.x1) return fragment;
  fragment.x = min(chunk.x0 + column, chunk.x1 - 1);
  fragment.label_offset = p.target.offset(tile.image, 0, 0, fragment.x);
  const int cell = static_cast<int>(axis.cell(fragment.x));
  fragment.owned = fragment.active && cell >= tile.x0;
  fragment.left = cell - chunk.cell0;
  fragment.right = static_cast<int>(axis.next(cell)) - chunk.cell0;
  fragment.slot = column + config.skew * fragment.left;
  // beyond the last cell both are equal, and 0 would make NaN of an infinity
  fragment.fx = fragment.right == fragment.left ? T(0.5) : axis.fraction<T>(fragment.x);
  return fragment;
}

// Label rows from the top down, by exact integer steps: row y is at cell + rest / den, held at 0 above the first
// cell.
template <typename T>
struct RowStepper {
  int cell, rest;
  T per_rest;  // 1 / den

  __device__ __forceinline__ RowStepper(const Axis& axis, int64_t y) : per_rest(T(1) / static_cast<T>(axis.den)) {
    const int64_t at = axis.labels > 0 ? axis.cell(y) : 0;
    cell = static_cast<int>(at);
    rest = static_cast<int>(axis.mul * y + axis.add - at * axis.den);
  }
  __device__ __forceinline__ void step(const Axis& axis) {
    const int den = static_cast<int>(axis.den);
    for (rest += static_cast<int>(axis.mul); rest >= den; rest -= den) ++cell;
  }
  __device__ __forceinline__ T fraction(const Axis& axis) const {
    return rest > 0 && cell + 1 < axis.cells ? static_cast<T>(rest) * per_rest : T(0);
  }
};

}  // namespace metricseg::resized
