// The ops as functions, and their arguments as tensors, which become RefineParams. Names and order are those of the
// schemas in metricseg_kernels/refine/cpu.py. Tensor is that of torch, or a numpy array in the tests. Include the header
// with its map_of first: common/host/torch_map.h or tests/support/cuda_host/host.h.
#pragma once

#include <optional>

#include "params.h"

namespace metricseg::refine {

template <typename Tensor>
struct RefineArguments {
  Tensor features, offsets;
  std::optional<Tensor> neighbor_logits;
  bool align_corners, zeros;
  Tensor output;  // backward: its gradient
  std::optional<Tensor> grad_features, grad_offsets, grad_neighbor_logits;

  template <typename T>
  RefineParams<T> params() const {
    RefineParams<T> p{};
    p.batch = size_of(features, 0);
    p.channels = size_of(features, 1);
    p.y = Axis::make(size_of(features, 2), size_of(offsets, 2), align_corners);
    p.x = Axis::make(size_of(features, 3), size_of(offsets, 3), align_corners);
    p.zeros = zeros;
    p.features = map_of(features);
    p.offsets = map_of(offsets);
    p.neighbor_logits = map_of(neighbor_logits);
    p.output = map_of(output);
    p.grad_features = map_of(grad_features);
    p.grad_offsets = map_of(grad_offsets);
    p.grad_neighbor_logits = map_of(grad_neighbor_logits);
    return p;
  }
};

// The ops, for TORCH_BOX and pybind11.
template <typename Tensor, void (*run)(const RefineArguments<Tensor>&)>
void refine_fwd_kernel(Tensor features, Tensor offsets, std::optional<Tensor> neighbor_logits, bool align_corners,
                       bool zeros, Tensor output) {
  run({features, offsets, neighbor_logits, align_corners, zeros, output, {}, {}, {}});
}

template <typename Tensor, void (*run)(const RefineArguments<Tensor>&)>
void refine_bwd_kernel(Tensor features, Tensor offsets, std::optional<Tensor> neighbor_logits, bool align_corners,
                       bool zeros, Tensor grad_output, std::optional<Tensor> grad_features,
                       std::optional<Tensor> grad_offsets, std::optional<Tensor> grad_neighbor_logits) {
  run({features, offsets, neighbor_logits, align_corners, zeros, grad_output, grad_features, grad_offsets,
       grad_neighbor_logits});
}

}  // namespace metricseg::refine
