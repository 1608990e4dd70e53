// Arguments of the order of rows on CUDA as plain data.
#pragma once

#include "../../common/tensor_map.h"

namespace metricseg::row_pairs {

// A side in the order of the caller, and where its rows go. Weights and factors may be absent on either end.
template <typename T>
struct Labeled {
  Map labels, ids;  // [N]
  int count;
  Map weights, factors;  // [N], floating
  bool drops;            // a row of weight 0 takes no part
  int64_t* order;
  int32_t *groups, *ranked_ids;
  T *sorted_weights, *sorted_factors;
};

template <typename T>
struct SortParams {
  Labeled<T> sides[2];  // the second may have no rows
  int64_t ignore_index;
};

}  // namespace metricseg::row_pairs
