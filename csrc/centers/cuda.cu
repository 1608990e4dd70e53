// Raw kernels of the centers family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/centers/op.py) has checked the arguments of the user and allocated the outputs.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "run.cuh"

namespace metricseg::centers {
namespace {

constexpr int64_t kMostPixels = int64_t(1) << 30;  // of an image

void check_features(const Tensor& x, int64_t classes) {
  STD_TORCH_CHECK(x.dim() == 4 && is_floating(type_of(x)), "metricseg: features must be [B, C, h, w], floating");
  STD_TORCH_CHECK(x.size(2) * x.size(3) < kMostPixels && x.size(1) < kMostPixels && classes < kMostPixels,
                  "metricseg: 2^30 pixels of an image, channels or classes");
}

void check_labels(const Optional& labels, const Tensor& x) {
  if (!labels) return;
  STD_TORCH_CHECK(!is_floating(type_of(*labels)), "metricseg: labels must be integers");
  check_tensor(labels, {x.size(0), x.size(2), x.size(3)}, x, labels->scalar_type(), "labels", false);
}

void check_logits(const Optional& logits, const Tensor& x, int64_t classes, const char* name) {
  if (!logits) return;
  STD_TORCH_CHECK(is_floating(type_of(*logits)) && accumulator_of(*logits) == accumulator_of(x), "metricseg: ", name,
                  " has the wrong dtype");
  check_tensor(logits, {x.size(0), classes, x.size(2), x.size(3)}, x, logits->scalar_type(), name, false);
}

template <bool backward>
void run_similarity(const SimilarityArguments<Tensor>& a) {
  const Tensor &x = a.features, &weights = a.weights;
  STD_TORCH_CHECK(weights.dim() == 3, "metricseg: weights must be [1 or B, K, C]");
  const int64_t K = weights.size(1), groups = weights.size(0);
  check_features(x, K);
  const int64_t B = x.size(0), C = x.size(1), h = x.size(2), w = x.size(3);
  STD_TORCH_CHECK(groups == 1 || groups == B, "metricseg: weights of neither one nor all images");
  const ScalarType type = x.scalar_type(), sum = accumulator_of(x);
  check_tensor(weights, {groups, K, C}, x, sum, "weights");
  check_labels(a.labels, x);
  STD_TORCH_CHECK(!a.bias || a.bias->size(0) == 1 || a.bias->size(0) == B, "metricseg: bias has the wrong shape");
  if (a.bias) check_tensor(a.bias, {a.bias->size(0), K}, x, sum, "bias");
  STD_TORCH_CHECK((a.metric == "cosine") == a.norms.has_value() && (backward || a.labels || !a.target_similarity),
                  "metricseg: norms of another metric, or target_similarity without labels");
  check_tensor(a.logits, {B, K, h, w}, x, type, "logits");
  check_tensor(a.target_similarity, {B, h, w}, x, sum, "target_similarity");
  check_tensor(a.norms, {B, h, w}, x, sum, "norms");
  if (backward) {
    STD_TORCH_CHECK(a.grad_logits && (a.metric != "cosine" || a.logits), "metricseg: backward needs logits");
    STD_TORCH_CHECK(!a.grad_pull || (a.labels && a.target_similarity && a.pull_stats),
                    "metricseg: a gradient of the pull, for which nothing was kept");
  } else {
    STD_TORCH_CHECK(a.logits && (!a.labels || a.target_similarity), "metricseg: no output");
  }
  check_tensor(a.grad_logits, {B, K, h, w}, x, type, "grad_logits", false);
  check_tensor(a.grad_pull, {}, x, sum, "grad_pull");
  check_tensor(a.pull_stats, {B, 1 + K}, x, sum, "pull_stats");
  check_tensor(a.grad_features, {B, C, h, w}, x, type, "grad_features", false);
  check_tensor(a.grad_weights, {groups, K, C}, x, sum, "grad_weights");
  CudaDevice device(x);
  dispatch_accumulator(type_of(x), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? similarity_bwd(device, params) : similarity_fwd(device, params);
  });
}

// Of the means of these features, or of their gradient.
void check_means(const MeansArguments<Tensor>& a, const Tensor& x, int64_t classes, bool backward) {
  const int64_t B = x.size(0), C = x.size(1);
  check_tensor(a.centers, {B, classes, C}, x, x.scalar_type(), "centers");
  const bool same = a.kept && a.kept->scalar_type() == x.scalar_type();  // backward may have the centers themselves
  check_tensor(a.kept, {B, classes, C}, x, backward && same ? x.scalar_type() : accumulator_of(x), "means");
  check_tensor(a.totals, {B, classes}, x, accumulator_of(x), "totals");
  check_tensor(a.present, {B, classes}, x, ScalarType::Bool, "present");
}

template <bool backward>
void run_soft(const SoftArguments<Tensor>& a) {
  const Tensor& x = a.features;
  STD_TORCH_CHECK(a.logits.dim() == 4, "metricseg: logits must be [B, K, h, w]");
  const int64_t K = a.logits.size(1);
  check_features(x, K);
  check_logits(a.logits, x, K, "logits");
  check_means(a.means, x, K, backward);
  check_tensor(a.grad_features, {x.size(0), x.size(1), x.size(2), x.size(3)}, x, x.scalar_type(), "grad_features",
               false);
  check_logits(a.grad_logits, x, K, "grad_logits");
  CudaDevice device(x);
  dispatch_accumulator(type_of(x), [&](auto zero) {
    using T = decltype(zero);
    const auto params = a.template params<T>();
    backward ? soft_means_bwd(device, params, a.means.template grad_params<T>())
             : soft_means_fwd(device, params, a.means.template params<T>());
  });
}

template <bool backward>
void run_hard(const HardArguments<Tensor>& a) {
  const Tensor& x = a.features;
  STD_TORCH_CHECK(a.means.totals.dim() == 2, "metricseg: totals must be [B, K]");
  const int64_t B = x.size(0), K = a.means.totals.size(1);
  check_features(x, K);
  STD_TORCH_CHECK(B * x.size(2) * x.size(3) < int64_t(1) << 32 && B * K < int64_t(1) << 31,
                  "metricseg: 2^32 pixels, or 2^31 classes of all images");
  check_labels(a.labels, x);
  check_means(a.means, x, K, backward);
  CudaDevice device(x);
  dispatch_accumulator(type_of(x), [&](auto zero) {
    using T = decltype(zero);
    const auto params = a.template params<T>();
    backward ? hard_means_bwd(device, params, a.means.template grad_params<T>())
             : hard_means_fwd(device, params, a.means.template params<T>());
  });
}

template <bool backward>
void run_fold(const FoldArguments<Tensor>& a) {
  const Tensor &x = a.centers, &weights = a.weights;
  STD_TORCH_CHECK(is_floating(type_of(x)) && weights.dim() == 3 && x.is_contiguous() && x.numel() == weights.numel(),
                  "metricseg: centers must be floating, contiguous, [K, C] or [B, K, C], and weights [1 or B, K, C]");
  const int64_t groups = weights.size(0), K = weights.size(1), C = weights.size(2);
  check_tensor(weights, {groups, K, C}, x, accumulator_of(x), "weights");
  check_tensor(a.bias, {groups, K}, x, accumulator_of(x), "bias");
  STD_TORCH_CHECK(backward || (a.metric == "euclidean") == a.bias.has_value(), "metricseg: bias of another metric");
  STD_TORCH_CHECK(!a.grad || (a.grad->is_contiguous() && a.grad->numel() == x.numel() &&
                              a.grad->scalar_type() == x.scalar_type() && a.grad->is_cuda()),
                  "metricseg: the gradient of centers must be like centers");
  CudaDevice device(x);
  dispatch_accumulator(type_of(x), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? fold_bwd(device, params) : fold_fwd(device, params);
  });
}

void run_pull(const PullArguments<Tensor>& a) {
  const Tensor &x = a.target_similarity, &labels = a.labels;
  STD_TORCH_CHECK(x.dim() == 3 && labels.dim() == 3 && a.stats.dim() == 2 && is_floating(type_of(x)) &&
                      !is_floating(type_of(labels)),
                  "metricseg: target_similarity and labels must be [B, h, w], pull_stats [B, 1 + K]");
  const int64_t B = labels.size(0), h = labels.size(1), w = labels.size(2);
  STD_TORCH_CHECK(h * w < kMostPixels && a.stats.size(1) - 1 < kMostPixels, "metricseg: 2^30 pixels or classes");
  check_tensor(x, {B, h, w}, x, accumulator_of(x), "target_similarity");
  check_tensor(labels, {B, h, w}, x, labels.scalar_type(), "labels", false);
  check_tensor(a.pull, {}, x, accumulator_of(x), "pull");
  check_tensor(a.stats, {B, a.stats.size(1)}, x, accumulator_of(x), "pull_stats");
  CudaDevice device(x);
  dispatch_accumulator(type_of(x), [&](auto zero) { mean_pull(device, a.template params<decltype(zero)>()); });
}

}  // namespace
}  // namespace metricseg::centers

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using namespace metricseg::centers;
  using metricseg::Tensor;
  m.impl("pixel_similarity_fwd_kernel", TORCH_BOX((&similarity_fwd_kernel<Tensor, run_similarity<false>>)));
  m.impl("pixel_similarity_bwd_kernel", TORCH_BOX((&similarity_bwd_kernel<Tensor, run_similarity<true>>)));
  m.impl("soft_class_means_fwd_kernel", TORCH_BOX((&soft_means_fwd_kernel<Tensor, run_soft<false>>)));
  m.impl("soft_class_means_bwd_kernel", TORCH_BOX((&soft_means_bwd_kernel<Tensor, run_soft<true>>)));
  m.impl("hard_class_means_fwd_kernel", TORCH_BOX((&hard_means_fwd_kernel<Tensor, run_hard<false>>)));
  m.impl("hard_class_means_bwd_kernel", TORCH_BOX((&hard_means_bwd_kernel<Tensor, run_hard<true>>)));
  m.impl("fold_rows_fwd_kernel", TORCH_BOX((&fold_fwd_kernel<Tensor, run_fold<false>>)));
  m.impl("fold_rows_bwd_kernel", TORCH_BOX((&fold_bwd_kernel<Tensor, run_fold<true>>)));
  m.impl("center_pull_fwd_kernel", TORCH_BOX((&pull_kernel<Tensor, run_pull>)));
}
