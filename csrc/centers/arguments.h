// The ops as functions, and their arguments as tensors, which become Params. Names and order are those of the schemas
// in metricseg_kernels/centers/cuda.py. Tensor is that of torch, or a numpy array in the tests. Include the header with
// its map_of and data_of first: common/host/torch_map.h or tests/support/cuda_host/host.h.
#pragma once

#include <optional>
#include <string>

#include "../engines/pixel_rows/label_sums.cuh"
#include "params.h"

namespace metricseg::centers {

template <typename Tensor>
struct SimilarityArguments {
  std::optional<Tensor> grad_logits, grad_target_similarity;  // backward only
  Tensor features, weights;
  std::optional<Tensor> bias, labels;
  std::string metric;
  double scale;
  int64_t ignore_index;
  double eps;
  bool exact;
  std::optional<Tensor> logits, target_similarity, norms;
  std::optional<Tensor> grad_features, grad_weights;  // backward only

  template <typename T>
  SimilarityParams<T> params() const {
    SimilarityParams<T> p{};
    p.batch = size_of(features, 0);
    p.channels = size_of(features, 1);
    p.height = size_of(features, 2);
    p.width = size_of(features, 3);
    p.classes = size_of(weights, 1);
    p.features = map_of(features);
    p.weights = data_of<T>(weights);
    p.weight_images = size_of(weights, 0);
    p.bias = data_of<T>(bias);
    p.bias_images = bias ? size_of(*bias, 0) : 1;
    p.labels = map_of(labels);
    p.ignore_index = ignore_index;
    p.cosine = metric == "cosine";
    p.square = static_cast<T>(metric == "euclidean" ? scale : 0);
    p.eps = static_cast<T>(eps);
    p.exact = exact;
    p.logits = map_of(logits);
    p.target_similarity = data_of<T>(target_similarity);
    p.norms = data_of<T>(norms);
    p.grad_logits = map_of(grad_logits);
    p.grad_target_similarity = map_of(grad_target_similarity);
    p.grad_features = map_of(grad_features);
    p.grad_weights = data_of<T>(grad_weights);
    return p;
  }
};

template <typename Tensor>
struct SoftSumsArguments {
  Tensor features, logits, sums, mass;  // backward: the gradients of the last two
  bool exact;
  std::optional<Tensor> grad_features, grad_logits;  // backward only

  template <typename T>
  SoftSumsParams<T> params() const {
    SoftSumsParams<T> p{};
    p.batch = size_of(features, 0);
    p.channels = size_of(features, 1);
    p.height = size_of(features, 2);
    p.width = size_of(features, 3);
    p.classes = size_of(sums, 1);
    p.features = map_of(features);
    p.logits = map_of(logits);
    p.exact = exact;
    p.sums = data_of<T>(sums);
    p.mass = data_of<T>(mass);
    p.grad_features = map_of(grad_features);
    p.grad_logits = map_of(grad_logits);
    return p;
  }
};

template <typename Tensor>
struct HardSumsArguments {
  Tensor features, labels;  // backward: features are their gradient
  int64_t ignore_index;
  Tensor sums;  // backward: their gradient
  std::optional<Tensor> mass;

  template <typename T>
  LabelSumsParams<T> params() const {
    LabelSumsParams<T> p{};
    p.features = map_of(features);
    p.labels = map_of(labels);
    p.batch = size_of(features, 0);
    p.channels = size_of(features, 1);
    p.height = size_of(features, 2);
    p.width = size_of(features, 3);
    p.of_image = p.image_step = size_of(sums, 1);
    p.classes = p.batch * p.of_image;
    p.ignore_index = ignore_index;
    p.sums = data_of<T>(sums);
    p.sums_row = p.channels;
    p.sums_column = 1;
    p.mass = data_of<T>(mass);
    return p;
  }
};

// The ops, for TORCH_BOX and pybind11.
template <typename Tensor, void (*run)(const SimilarityArguments<Tensor>&)>
void similarity_fwd_kernel(Tensor features, Tensor weights, std::optional<Tensor> bias, std::optional<Tensor> labels,
                           std::string metric, double scale, int64_t ignore_index, double eps, bool exact,
                           Tensor logits, std::optional<Tensor> target_similarity, std::optional<Tensor> norms) {
  run({{},
       {},
       features,
       weights,
       bias,
       labels,
       metric,
       scale,
       ignore_index,
       eps,
       exact,
       logits,
       target_similarity,
       norms,
       {},
       {}});
}

template <typename Tensor, void (*run)(const SimilarityArguments<Tensor>&)>
void similarity_bwd_kernel(Tensor grad_logits, std::optional<Tensor> grad_target_similarity, Tensor features,
                           Tensor weights, std::optional<Tensor> labels, std::optional<Tensor> norms,
                           std::string metric, double scale, int64_t ignore_index, double eps, bool exact,
                           std::optional<Tensor> logits, std::optional<Tensor> target_similarity,
                           std::optional<Tensor> grad_features, std::optional<Tensor> grad_weights) {
  run({grad_logits,
       grad_target_similarity,
       features,
       weights,
       {},
       labels,
       metric,
       scale,
       ignore_index,
       eps,
       exact,
       logits,
       target_similarity,
       norms,
       grad_features,
       grad_weights});
}

template <typename Tensor, void (*run)(const SoftSumsArguments<Tensor>&)>
void soft_sums_fwd_kernel(Tensor features, Tensor logits, bool exact, Tensor sums, Tensor mass) {
  run({features, logits, sums, mass, exact, {}, {}});
}

template <typename Tensor, void (*run)(const SoftSumsArguments<Tensor>&)>
void soft_sums_bwd_kernel(Tensor grad_sums, Tensor grad_mass, Tensor features, Tensor logits, bool exact,
                          std::optional<Tensor> grad_features, std::optional<Tensor> grad_logits) {
  run({features, logits, grad_sums, grad_mass, exact, grad_features, grad_logits});
}

template <typename Tensor, void (*run)(const HardSumsArguments<Tensor>&)>
void hard_sums_fwd_kernel(Tensor features, Tensor labels, int64_t ignore_index, Tensor sums, Tensor mass) {
  run({features, labels, ignore_index, sums, mass});
}

template <typename Tensor, void (*run)(const HardSumsArguments<Tensor>&)>
void hard_sums_bwd_kernel(Tensor grad_sums, Tensor labels, int64_t ignore_index, Tensor grad_features) {
  run({grad_features, labels, ignore_index, grad_sums, {}});
}

}  // namespace metricseg::centers
