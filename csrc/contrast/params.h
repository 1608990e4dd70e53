// Arguments of the contrast kernels on CUDA as plain data. See docs/kernels/contrast.md.
#pragma once

#include "../engines/row_pairs/rows.h"

namespace metricseg::contrast {

enum class Form { negatives, all, margin, nca };  // in the order of forms.py

template <typename T>
struct ContrastParams {
  row_pairs::Rows<T> x, y;  // y without features: x against itself
  Form form;
  double numbers[4];  // of the form, as in forms.py
  bool exact;         // fp32 products without tensor cores
  bool reduce;        // terms are summed over the rows
  T *terms, *counts, *stats;
  Map grad_x, grad_y;  // absent if not wanted

  bool itself() const { return !y.features; }
};

// loss = sum_k terms_k / divisors_k, divisors = totals or 1, totals_k = sum_i counts_ik; by_row: see op.mean.
template <typename T>
struct MeanParams {
  const T *terms, *counts;  // [n], [A, n]
  Map weights;              // [A] or absent
  int64_t rows;
  int sums;  // n
  bool by_row;
  T* loss;         // []
  double* totals;  // [n]
  T* divisors;     // [n]
};

// Pixels and prototypes of "nca", see contrast/sets.py.
struct SetsParams {
  Map labels, segment_ids, prototype_labels;  // [N], [N], [P]
  int64_t pixels, count, ignore_index;
  int32_t *x, *y;         // [N], [P]
  int64_t *ids, *places;  // [N], [P]
};

}  // namespace metricseg::contrast
