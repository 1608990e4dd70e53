// One tile of the pairwise stream on the CPU: the products S = X Y^T that the matrix library left, and what a phase
// does to them. Python drives the stream (metricseg_kernels/contrast/cpu.py); the loops are in cpu_rows.h.
#pragma once

#include <cstdint>

#include "../common/by_type.h"

namespace metricseg::contrast {

constexpr int kMaxLanes = 16;  // the tile's columns are padded to a multiple of it, with group -1
constexpr int kChunk = 128;    // columns that are told apart at a time: all negative, absent, or mixed
constexpr int kStats = 5;
constexpr int kUnitRows = 32;  // rows whose sums over columns are added up together

enum class Form { negatives, all, margin };

// rows       complete rows: their stats from nothing, three sweeps of a row that stays in cache
// sum        adds sum exp(s - m / t) over the pairs of the denominator
// positives  adds the positives' count and sums; for "margin" all four stats
// weights    puts the gradient's weights in place of S; for "margin" adds their sums
enum class Phase { rows, sum, positives, weights };

// Per row or column, by form:   (m, b, a, L)  or, for "margin",  (squared norm, a, b, -); see contrast/op.py
template <typename T>
struct Tile {
  Form form;
  Phase phase;
  int64_t rows, columns;  // columns padded

  T* s;                     // [rows, columns]
  const int32_t* x_groups;  // [rows]
  const int32_t* y_groups;  // [columns]
  const int32_t* x_ids;     // [rows] or null: no pair is self
  const int32_t* y_ids;     // [columns]
  const int32_t* lowest;    // [columns / kChunk, rounded up] groups of a chunk
  const int32_t* highest;
  const T* x_terms;  // [rows, 4] or null
  const T* y_terms;  // [4, y_stride] or null: the tile serves its rows only
  int64_t y_stride;
  T* x_out;  // [rows, kStats], added to (rows: written)
  T* y_out;  // [kStats, columns] of a unit, or null; added to

  T inv_temperature, margin, positive_margin;
  bool squared;  // power 2
  bool nonzero;  // count the terms above 0, not the pairs
};

// Rows [begin, end) of a tile, within one unit.
template <typename T>
using Worker = void (*)(const Tile<T>&, int64_t begin, int64_t end, T* y_out);

using Workers = ByType<Worker>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::contrast
