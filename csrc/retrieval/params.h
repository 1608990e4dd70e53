// Arguments of topk_kernel on CUDA as plain data, the same for CUDA and the tests. See docs/kernels/retrieval.md.
#pragma once

#include "../common/tensor_map.h"

namespace metricseg::retrieval {

// Rows are the map's y, their values its x.
template <typename T>
struct TopkParams {
  Map queries;  // [Q, D]
  Map bank;     // [M, D]
  Map valid;    // [M] of bytes, or absent
  int64_t query_count, rows, depth, k;
  T* values;         // [Q, k]
  int64_t* indices;  // [Q, k]
};

}  // namespace metricseg::retrieval
