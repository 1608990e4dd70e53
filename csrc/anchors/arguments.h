// The ops as functions, and their arguments as tensors, which become Params. Names and order are those of the schemas
// in metricseg_kernels/anchors. Tensor is that of torch, or a numpy array in the tests. Include the header with
// its map_of and data_of first: common/host/torch_map.h or tests/support/cuda_host/host.h.
#pragma once

#include <optional>

#include "params.h"

namespace metricseg::anchors {

template <typename Tensor>
struct SampleArguments {
  Tensor labels;
  std::optional<Tensor> predictions, first;
  Tensor seed;
  Rules rules;
  int64_t num_classes, ignore_index, ignore_label;
  Tensor index, sampled, count, bad;

  SampleParams params(double deviations) const {
    SampleParams p{};
    p.labels = map_of(labels);
    p.predictions = map_of(predictions);
    p.first = map_of(first);
    p.batch = size_of(labels, 0);
    p.height = size_of(labels, 1);
    p.width = size_of(labels, 2);
    p.num_classes = num_classes;
    p.ignore_index = ignore_index;
    p.ignore_label = ignore_label;
    p.seed = data_of<int64_t>(seed);
    p.rules = rules;
    p.deviations = deviations;
    p.index = data_of<int64_t>(index);
    p.sampled = data_of<int64_t>(sampled);
    p.count = data_of<int64_t>(count);
    p.bad = data_of<int64_t>(bad);
    return p;
  }
};

template <typename Tensor>
struct GatherArguments {
  Tensor features, index, rows, norms;  // backward: features is their gradient
  std::optional<Tensor> grad_rows, order;
  bool normalize;
  double eps;

  template <typename T>
  GatherParams<T> params() const {
    GatherParams<T> p{};
    p.features = map_of(features);
    p.batch = size_of(features, 0);
    p.channels = size_of(features, 1);
    p.height = size_of(features, 2);
    p.width = size_of(features, 3);
    p.count = size_of(index, 0);
    p.index = data_of<int64_t>(index);
    p.rows = map_of(rows);
    p.norms = data_of<T>(norms);
    p.grad_rows = map_of(grad_rows);
    p.order = data_of<int64_t>(order);
    p.normalize = normalize;
    p.eps = static_cast<T>(eps);
    return p;
  }
};

// The ops, for TORCH_BOX and pybind11.
template <typename Tensor, void (*run)(const SampleArguments<Tensor>&)>
void sample_anchors_kernel(Tensor labels, std::optional<Tensor> predictions, std::optional<Tensor> first, Tensor seed,
                           int64_t max_samples, int64_t max_views, int64_t min_pixels, bool half, int64_t num_classes,
                           int64_t ignore_index, int64_t ignore_label, Tensor index, Tensor sampled, Tensor count,
                           Tensor bad) {
  const Rules rules{max_samples, max_views, min_pixels, half};
  run({labels, predictions, first, seed, rules, num_classes, ignore_index, ignore_label, index, sampled, count, bad});
}

template <typename Tensor, void (*run)(const GatherArguments<Tensor>&)>
void gather_pixels_fwd_kernel(Tensor features, Tensor index, bool normalize, double eps, Tensor rows, Tensor norms) {
  run({features, index, rows, norms, {}, {}, normalize, eps});
}

template <typename Tensor, void (*run)(const GatherArguments<Tensor>&)>
void gather_pixels_bwd_kernel(Tensor grad_rows, Tensor rows, Tensor norms, Tensor index, Tensor order, bool normalize,
                              double eps, Tensor grad) {
  run({grad, index, rows, norms, grad_rows, order, normalize, eps});
}

}  // namespace metricseg::anchors
