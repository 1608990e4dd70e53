// Matrix product of the pair stream on the CPU: out = A B or out += sign A B, matrices of any strides. The loops of one
// vector width are in product_loops.h, the units of work in product_run.h, torch's tensors in product_kernel.h.
#pragma once

#include <cstdint>

#include "../../common/by_type.h"

namespace metricseg::row_pairs {

constexpr int64_t kDepth = 256;  // steps of K at a time: a packed panel of B takes 32 KB, sized to fit in L1

template <typename T>
struct Product {
  const T* a;  // [M, K]
  int64_t a_row, a_step;
  const T* b;  // [K, N]
  int64_t b_step, b_column;
  const int64_t* b_steps;    // [K] or null: step k of B is row b_steps[k] of b
  const int64_t* b_columns;  // [N] or null, likewise
  T* out;                    // [M, N], each row contiguous
  int64_t out_row;
  int64_t M, N, K;
  T sign;           // 1 unless `accumulate`
  bool accumulate;  // out += sign A B

  int64_t begin, end;  // the current run of K
  T* packed;           // [steps of kDepth in a run, blocks, block_values]
};

// Tile sizes of one vector width.
struct Sizes {
  int64_t block_rows;    // rows of A in a block, the same in all
  int64_t block_values;  // packed values of a block for kDepth steps of K
  int64_t columns;       // columns of B in a panel
};

template <typename T>
struct Loops {
  Sizes (*sizes)(int64_t M);
  void (*pack)(const Product<T>&, int64_t step, int64_t block);
  // Blocks [first, last) times the panel that starts at `column`, over the current run. panel: [kDepth, columns]
  void (*multiply)(const Product<T>&, int64_t first, int64_t last, int64_t column, T* panel);
  // s[j, i] = s[i, j] for rows i < rows and columns j in [begin, end) of s with rows of `row` values.
  void (*mirror)(T* s, int64_t row, int64_t rows, int64_t begin, int64_t end);
};

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::row_pairs
