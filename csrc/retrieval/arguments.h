// The op as a function, and its arguments as tensors, which become TopkParams. Tensor is that of torch, or a numpy array
// in the tests. Include the header with its map_of and data_of first: common/host/torch_map.h or
// tests/support/cuda_host/host.h.
#pragma once

#include <optional>

#include "params.h"

namespace metricseg::retrieval {

template <typename Tensor>
struct TopkArguments {
  Tensor queries, bank;
  std::optional<Tensor> valid;
  Tensor values, indices;

  template <typename T>
  TopkParams<T> params() const {
    TopkParams<T> p{};
    p.queries = map_of(queries);
    p.bank = map_of(bank);
    p.valid = map_of(valid);
    p.query_count = size_of(queries, 0);
    p.rows = size_of(bank, 0);
    p.depth = size_of(queries, 1);
    p.k = size_of(values, 1);
    p.values = data_of<T>(values);
    p.indices = data_of<int64_t>(indices);
    return p;
  }
};

// For TORCH_BOX and pybind11.
template <typename Tensor, void (*run)(const TopkArguments<Tensor>&)>
void topk_kernel(Tensor queries, Tensor bank, std::optional<Tensor> valid, Tensor values, Tensor indices) {
  run({queries, bank, valid, values, indices});
}

}  // namespace metricseg::retrieval
