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
  std::optional<Tensor> grad_logits, grad_pull, pull_stats;  // backward only
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
    p.grad_pull = data_of<T>(grad_pull);
    p.pull_stats = data_of<T>(pull_stats);
    p.grad_features = map_of(grad_features);
    p.grad_weights = data_of<T>(grad_weights);
    return p;
  }
};

// Outputs of the means, or their gradient and what forward kept. Centers are [B, K, C].
template <typename Tensor>
struct MeansArguments {
  double least;
  bool by_mass;
  Tensor centers;  // backward: their gradient
  std::optional<Tensor> kept;
  Tensor totals;
  std::optional<Tensor> present;  // forward

  template <typename T>
  MeansParams<T> params() const {
    return {size_of(totals, 0), size_of(totals, 1), size_of(centers, 2), static_cast<T>(least), by_mass,
            map_of(centers),    data_of<T>(kept),   data_of<T>(totals),  data_of<bool>(present)};
  }
  template <typename T>
  MeansGradParams<T> grad_params() const {
    return {size_of(totals, 0),
            size_of(totals, 1),
            size_of(centers, 2),
            map_of(centers),
            map_of(kept),
            data_of<T>(totals),
            nullptr,
            nullptr};
  }
};

template <typename Tensor>
struct SoftArguments {
  Tensor features, logits;
  bool exact;
  MeansArguments<Tensor> means;
  std::optional<Tensor> grad_features, grad_logits;  // backward only

  template <typename T>
  SoftParams<T> params() const {
    SoftParams<T> p{};
    p.batch = size_of(features, 0);
    p.channels = size_of(features, 1);
    p.height = size_of(features, 2);
    p.width = size_of(features, 3);
    p.classes = size_of(logits, 1);
    p.features = map_of(features);
    p.logits = map_of(logits);
    p.exact = exact;
    p.grad_features = map_of(grad_features);
    p.grad_logits = map_of(grad_logits);
    return p;
  }
};

template <typename Tensor>
struct HardArguments {
  Tensor features, labels;  // backward: features are their gradient
  int64_t ignore_index;
  MeansArguments<Tensor> means;

  template <typename T>
  LabelSumsParams<T> params() const {
    LabelSumsParams<T> p{};
    p.features = map_of(features);
    p.labels = map_of(labels);
    p.batch = size_of(features, 0);
    p.channels = size_of(features, 1);
    p.height = size_of(features, 2);
    p.width = size_of(features, 3);
    p.of_image = p.image_step = size_of(means.totals, 1);
    p.classes = p.batch * p.of_image;
    p.ignore_index = ignore_index;
    p.sums_row = p.channels;
    p.sums_column = 1;
    return p;
  }
};

template <typename Tensor>
struct FoldArguments {
  Tensor centers;
  std::string metric;
  double scale, eps;
  Tensor weights;  // backward: their gradient, and of the bias
  std::optional<Tensor> bias, grad;

  template <typename T>
  FoldParams<T> params() const {
    FoldParams<T> p{};
    p.rows = size_of(weights, 0) * size_of(weights, 1);
    p.channels = size_of(weights, 2);
    p.centers = map_of(centers);
    p.metric = metric == "cosine" ? Metric::cosine : metric == "dot" ? Metric::dot : Metric::euclidean;
    p.scale = static_cast<T>(scale);
    p.eps = static_cast<T>(eps);
    p.weights = data_of<T>(weights);
    p.bias = data_of<T>(bias);
    p.grad = map_of(grad);
    return p;
  }
};

template <typename Tensor>
struct PullArguments {
  Tensor target_similarity, labels;
  double scale;
  int64_t ignore_index;
  Tensor pull, stats;

  template <typename T>
  PullParams<T> params() const {
    PullParams<T> p{};
    p.batch = size_of(labels, 0);
    p.height = size_of(labels, 1);
    p.width = size_of(labels, 2);
    p.classes = size_of(stats, 1) - 1;
    p.target_similarity = data_of<T>(target_similarity);
    p.labels = map_of(labels);
    p.scale = static_cast<T>(scale);
    p.ignore_index = ignore_index;
    p.pull = data_of<T>(pull);
    p.stats = data_of<T>(stats);
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
void similarity_bwd_kernel(Tensor grad_logits, std::optional<Tensor> grad_pull, std::optional<Tensor> pull_stats,
                           Tensor features, Tensor weights, std::optional<Tensor> labels, std::optional<Tensor> norms,
                           std::string metric, double scale, int64_t ignore_index, double eps, bool exact,
                           std::optional<Tensor> logits, std::optional<Tensor> target_similarity,
                           std::optional<Tensor> grad_features, std::optional<Tensor> grad_weights) {
  run({grad_logits,
       grad_pull,
       pull_stats,
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

template <typename Tensor, void (*run)(const SoftArguments<Tensor>&)>
void soft_means_fwd_kernel(Tensor features, Tensor logits, bool exact, double least, bool by_mass, Tensor centers,
                           std::optional<Tensor> kept, Tensor totals, Tensor present) {
  run({features, logits, exact, {least, by_mass, centers, kept, totals, present}, {}, {}});
}

template <typename Tensor, void (*run)(const SoftArguments<Tensor>&)>
void soft_means_bwd_kernel(Tensor grad, std::optional<Tensor> means, Tensor totals, Tensor features, Tensor logits,
                           bool exact, std::optional<Tensor> grad_features, std::optional<Tensor> grad_logits) {
  run({features, logits, exact, {0.0, false, grad, means, totals, {}}, grad_features, grad_logits});
}

template <typename Tensor, void (*run)(const HardArguments<Tensor>&)>
void hard_means_fwd_kernel(Tensor features, Tensor labels, int64_t ignore_index, double least, bool by_mass,
                           Tensor centers, Tensor totals, Tensor present) {
  run({features, labels, ignore_index, {least, by_mass, centers, {}, totals, present}});
}

template <typename Tensor, void (*run)(const HardArguments<Tensor>&)>
void hard_means_bwd_kernel(Tensor grad, Tensor totals, Tensor labels, int64_t ignore_index, Tensor grad_features) {
  run({grad_features, labels, ignore_index, {0.0, false, grad, {}, totals, {}}});
}

template <typename Tensor, void (*run)(const FoldArguments<Tensor>&)>
void fold_fwd_kernel(Tensor centers, std::string metric, double scale, double eps, Tensor weights,
                     std::optional<Tensor> bias) {
  run({centers, metric, scale, eps, weights, bias, {}});
}

template <typename Tensor, void (*run)(const FoldArguments<Tensor>&)>
void fold_bwd_kernel(Tensor grad_weights, std::optional<Tensor> grad_bias, Tensor centers, std::string metric,
                     double scale, double eps, Tensor grad) {
  run({centers, metric, scale, eps, grad_weights, grad_bias, grad});
}

template <typename Tensor, void (*run)(const PullArguments<Tensor>&)>
void pull_kernel(Tensor target_similarity, Tensor labels, double scale, int64_t ignore_index, Tensor pull,
                 Tensor stats) {
  run({target_similarity, labels, scale, ignore_index, pull, stats});
}

}  // namespace metricseg::centers
