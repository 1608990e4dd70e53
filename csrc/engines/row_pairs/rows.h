// Both sides of the pairs on CUDA as plain data, and the geometry of a walk over their tiles. See docs/kernels/contrast.md.
#pragma once

#include <algorithm>

#include "../../common/tensor_map.h"

namespace metricseg::row_pairs {

constexpr int kThreads = 256, kWarps = 8;
constexpr int kRows = 16 * kWarps;  // of X in a block; a warp has 16
constexpr int kUnit = 64;           // bytes that a row is padded to
constexpr int kWhole = 512;         // bytes of rows that are not cut into chunks, at most
constexpr int kSkew = 16;           // bytes after a row in shared memory: rows of a matrix lie in different banks
constexpr int kFields = 9;          // values of a column that an epilogue may read
constexpr int kFieldBytes = 256;    // of a tile's columns
constexpr int kMostCoefs = kFields - 4;
constexpr int64_t kPrograms = 264;  // blocks that a grid has at least, if there are tiles enough

// A side as the caller has it; row r of the work is row order[r] of features.
template <typename T>
struct Rows {
  Map features;  // [N, D]
  int64_t count, depth;
  const int64_t* order;   // [N]
  const int32_t* groups;  // [N], rising; -1: takes no part
  const int32_t* ids;     // [N] or null
  const T* weights;       // [N] or null, of the rows as columns
  const T* factors;       // [N] or null, of the terms of the rows
};

// The same sorted, padded to a multiple of kRows rows, with zeros in rows that take no part.
template <typename T>
struct Side {
  int padded, tiles;
  char* data;       // [padded, row_bytes]
  T* squares;       // [padded], squared norms
  int32_t* groups;  // [padded]
  int32_t* ids;     // [padded] or null
  T* weights;       // [padded] or null
  int32_t* low;     // [tiles] least group
  int32_t* high;    // [tiles] greatest
  T* top;           // [tiles] largest squared norm
  T* range;         // [tiles] largest |log weight|, or null
  const T* coefs;   // [kMostCoefs, padded] of the gradient; null: the side has none
};

// How rows go through shared memory: X once and tiles of Y in turn, or both in chunks.
struct Geometry {
  int row_bytes, chunk_bytes, chunks;
  int slice_bytes, slices;  // columns of the gradient in a block
  int x_bytes, stage_bytes;

  METRICSEG_HD bool whole() const { return chunks == 1; }
  METRICSEG_HD int smem() const { return x_bytes + 2 * stage_bytes; }
};

// whole: bytes of rows that are not cut into chunks; those of a chunk, and of a slice of the gradient.
template <class P>
Geometry make_geometry(int64_t depth, bool second, int whole, int chunk, int slice) {
  constexpr int kSize = sizeof(typename P::Operand);
  Geometry g{};
  const int64_t bytes = std::max<int64_t>(ceil_div(depth * kSize, kUnit), 1) * kUnit;
  g.chunk_bytes = static_cast<int>(bytes <= whole ? bytes : chunk);
  g.row_bytes = static_cast<int>(ceil_div(bytes, g.chunk_bytes) * g.chunk_bytes);
  g.chunks = g.row_bytes / g.chunk_bytes;
  g.slice_bytes = std::min({g.row_bytes, P::kSlice * kSize, slice});
  g.slices = static_cast<int>(ceil_div(g.row_bytes, g.slice_bytes));
  const int row = g.chunk_bytes + kSkew;
  g.x_bytes = g.whole() ? kRows * row : 0;
  int rows = P::kColumns * row + (g.whole() ? 0 : kRows * row);
  if (second && !g.whole()) rows = std::max(rows, P::kColumns * (g.slice_bytes + kSkew));
  g.stage_bytes = rows + kFields * kFieldBytes;
  return g;
}

// The first that fits in the shared memory of a block: 160 KiB on data center devices, less than 100 on others.
template <class P>
Geometry make_geometry(int64_t depth, bool second, int64_t smem) {
  Geometry g = make_geometry<P>(depth, second, kWhole, 256, 1024);
  if (g.smem() > smem) g = make_geometry<P>(depth, second, 256, 128, 512);
  return g;
}

// A pass over the pairs of X and Y.
template <typename T>
struct Pass {
  Side<T> x, y;
  Geometry geometry;
  bool self;                  // a row of X may be in Y too; without ids it is the one in the same place
  bool positives, negatives;  // which pairs count
  int parts;                  // that a walk is cut into
};

template <typename T>
Pass<T> make_pass(const Side<T>& x, const Side<T>& y, const Geometry& g, bool self, int slices) {
  Pass<T> pass{x, y, g, self, true, true, 1};
  const int64_t blocks = int64_t(x.padded / kRows) * slices;
  pass.parts = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(ceil_div(kPrograms, blocks), y.tiles / 2)));
  return pass;
}

}  // namespace metricseg::row_pairs
