// A tile of products S = X Y^T, and what an epilogue of a family reads and adds beside it. Python drives the stream of
// tiles (metricseg_kernels/engines/row_pairs/cpu.py), tile_kernel.h hands a tile to torch's threads, row.h has what the
// epilogues of one vector width share.
#pragma once

#include <cstdint>

namespace metricseg::row_pairs {

constexpr int kMaxLanes = 16;      // a tile's columns are padded to a multiple of it, with group -1
constexpr int kChunk = 128;        // columns that are told apart at a time: all negative, absent, or mixed
constexpr int64_t kTileUnit = 32;  // rows whose sums over columns are added up together

template <typename T>
struct Tile {
  int64_t rows, columns;  // columns padded

  T* s;                     // [rows, columns]
  const int32_t* x_groups;  // [rows]
  const int32_t* y_groups;  // [columns]
  const int32_t* x_ids;     // [rows] or null: no pair is self
  const int32_t* y_ids;     // [columns]
  const T* x_weights;       // [rows] or null, of the rows as columns of each other
  const T* y_weights;       // [columns] or null
  const int32_t* lowest;    // [columns / kChunk, rounded up] groups of a chunk
  const int32_t* highest;
  const T* x_coefs;  // [rows, x_coefs_row] or null
  int64_t x_coefs_row;
  const T* y_coefs;  // [coefs, y_coefs_row] or null: the tile serves its rows only
  int64_t y_coefs_row;
  T* x_out;  // [rows, x_out_row], added to; or null
  int64_t x_out_row;
  T* y_out;  // [outs, columns] of a unit, or null; added to

  const double* constants;  // of the form, as its dataclass in Python has them
};

// Rows [begin, end) of a tile, within one unit.
template <typename T>
using Worker = void (*)(const Tile<T>&, int64_t begin, int64_t end);

// What a form does to a tile in one phase. A table of them ends with a null name.
template <typename T>
struct Epilogue {
  const char* name;      // "<form> <phase>"
  int constants, coefs;  // values of the form, and of a row
  int outs;              // values that it adds to each row
  Worker<T> run;
};

}  // namespace metricseg::row_pairs
