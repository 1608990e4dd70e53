// The centers family on the CPU: turns the tensors of torch into a Job, and gives its pixels to the threads of torch.
// Sums over pixels are formed in parts that depend on the shapes alone, and are added in order. So the bits are the
// same whatever the number of threads.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/simd_choice.h"
#include "../common/host/torch_map.h"
#include "cpu_job.h"

namespace metricseg::centers {
namespace {

constexpr int64_t kPanelBytes = int64_t{320} << 10;  // of the tiles of features in a panel
constexpr int64_t kMostPanel = 1024;
constexpr int64_t kLeastParts = 4;  // of all sums over pixels
constexpr int64_t kMostParts = 64;
constexpr int64_t kPartShare = 96;  // parts take up to this share of the maps' memory

template <typename T>
const Loops<T>& loops() {
  static const Workers& chosen = METRICSEG_WIDEST;
  return chosen.of(T());
}

template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
using Values = decltype(aligned_values<T>(0));

// Rows [sets, K, C], packed plain and transposed, for both products.
template <typename T>
struct Packed {
  Values<T> rows, turned;

  Packed(const Tensor& tensor, Job<T>& job, bool plain, bool transposed) {
    const int64_t sets = tensor.size(0), K = tensor.size(1), C = tensor.size(2);
    const int64_t s = tensor.stride(0), k = tensor.stride(1), c = tensor.stride(2);
    job.shared = sets == 1;
    job.rows_stride = (K + kPadRows) * C;
    job.rows_t_stride = (C + kPadRows) * K;
    if (plain) rows = aligned_values<T>(sets * job.rows_stride);
    if (transposed) turned = aligned_values<T>(sets * job.rows_t_stride);
    parallel(sets, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* const from = data_of<T>(tensor) + i * s;
        if (plain) loops<T>().pack(from, k, c, K, C, rows.get() + i * job.rows_stride);
        if (transposed) loops<T>().pack(from, c, k, C, K, turned.get() + i * job.rows_t_stride);
      }
    });
    job.rows = rows.get();
    job.rows_t = turned.get();
  }
};

template <typename T>
Job<T> make_job(const Tensor& features, int64_t classes, int64_t ignore_index) {
  Job<T> job{};
  job.channels = features.size(1);
  job.classes = classes;
  job.width = features.size(3);
  const int64_t pixel = std::max<int64_t>(std::max(job.channels, classes), 1) * sizeof(T);
  job.panel = std::clamp(kPanelBytes / pixel / kMostTile * kMostTile, 4 * kMostTile, kMostPanel);
  job.ignore_index = ignore_index;
  job.features = map_of(features);
  return job;
}

// loop over all pixels of all images.
template <typename T>
void run(const Job<T>& job, Loop<T> loop, const Tensor& features) {
  const int64_t pixels = features.size(2) * features.size(3), panels = (pixels + job.panel - 1) / job.panel;
  parallel(features.size(0) * panels, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = aligned_values<T>(job.scratch_values());
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % panels * job.panel;
      loop(job, unit / panels, first, std::min(first + job.panel, pixels), scratch.get(), nullptr, nullptr);
    }
  });
}

// The same with sums [groups, K, C] and mass [groups, K] over the pixels of each image, or of all (groups = 1).
template <typename T>
void run_sums(const Job<T>& job, Loop<T> loop, const Tensor& features, int64_t groups, T* sums, T* mass) {
  const int64_t images = features.size(0), pixels = features.size(2) * features.size(3);
  const int64_t panels = (pixels + job.panel - 1) / job.panel, units = groups > 0 ? images / groups * panels : 0;
  const int64_t values = job.classes * job.channels, own = values + job.classes;
  const int64_t fit = images * pixels * (job.channels + job.classes) / (kPartShare * std::max<int64_t>(own, 1));
  const int64_t most = std::clamp(fit, kLeastParts, kMostParts) / std::max<int64_t>(groups, 1);
  int64_t parts = 1;
  while (2 * parts <= std::min(most, units)) parts *= 2;
  const auto partial = aligned_values<T>(groups * parts * own);
  parallel(groups * parts, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = aligned_values<T>(job.scratch_values());
    for (int64_t part = begin; part < end; ++part) {
      T* const found = partial.get() + part * own;
      std::fill_n(found, own, T(0));
      const int64_t group = part / parts, index = part % parts;
      for (int64_t unit = units * index / parts; unit < units * (index + 1) / parts; ++unit) {
        const int64_t first = unit % panels * job.panel, image = groups == 1 ? unit / panels : group;
        loop(job, image, first, std::min(first + job.panel, pixels), scratch.get(), found, found + values);
      }
    }
  });
  parallel(groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      std::fill_n(sums + group * values, values, T(0));
      if (mass) std::fill_n(mass + group * job.classes, job.classes, T(0));
      for (int64_t index = 0; index < parts; ++index) {
        const T* const found = partial.get() + (group * parts + index) * own;
        for (int64_t i = 0; i < values; ++i) sums[group * values + i] += found[i];
        for (int64_t k = 0; mass && k < job.classes; ++k) mass[group * job.classes + k] += found[values + k];
      }
    }
  });
}

template <typename T>
void set_metric(Job<T>& job, const std::string& metric, double scale, double eps, const Optional& bias) {
  job.direction = metric == "cosine";
  job.square = static_cast<T>(metric == "euclidean" ? scale : 0.0);
  job.eps = static_cast<T>(eps);
  job.bias = bias.has_value() ? data_of<T>(*bias) : nullptr;
}

template <typename T>
void similarity(const Tensor& features, const Tensor& weights, const Optional& bias, const Optional& labels,
                const std::string& metric, double scale, int64_t ignore_index, double eps, const Tensor& logits,
                const Optional& own, const Optional& norms) {
  Job<T> job = make_job<T>(features, weights.size(1), ignore_index);
  const Packed<T> packed(weights, job, true, false);
  set_metric(job, metric, scale, eps, bias);
  job.logits = map_of(logits);
  job.labels = map_of(labels);
  job.own = map_of(own);
  job.norms = map_of(norms);
  run(job, loops<T>().similarity, features);
}

template <typename T>
void similarity_grad(const Tensor& grad_logits, const Optional& grad_own, const Tensor& features, const Tensor& weights,
                     const Optional& labels, const Optional& norms, const std::string& metric, double scale,
                     int64_t ignore_index, double eps, const Optional& grad_features, const Optional& grad_weights) {
  Job<T> job = make_job<T>(features, weights.size(1), ignore_index);
  const Packed<T> packed(weights, job, false, grad_features.has_value());
  set_metric(job, metric, scale, eps, std::nullopt);
  job.grad_logits = map_of(grad_logits);
  job.grad_own = map_of(grad_own);
  job.labels = map_of(labels);
  job.norms = map_of(norms);
  job.grad_features = map_of(grad_features);
  if (grad_weights.has_value()) {
    T* const sums = static_cast<T*>(grad_weights->mutable_data_ptr());
    run_sums<T>(job, loops<T>().similarity_grad, features, weights.size(0), sums, nullptr);
  } else {
    run(job, loops<T>().similarity_grad, features);
  }
}

template <typename T>
void soft_sums(const Tensor& features, const Tensor& logits, const Tensor& sums, const Tensor& mass) {
  Job<T> job = make_job<T>(features, logits.size(1), 0);
  job.logits = map_of(logits);
  run_sums(job, loops<T>().soft_sums, features, sums.size(0), static_cast<T*>(sums.mutable_data_ptr()),
           static_cast<T*>(mass.mutable_data_ptr()));
}

template <typename T>
void soft_sums_grad(const Tensor& grad_sums, const Tensor& grad_mass, const Tensor& features, const Tensor& logits,
                    const Optional& grad_features, const Optional& grad_logits) {
  Job<T> job = make_job<T>(features, logits.size(1), 0);
  const Packed<T> packed(grad_sums, job, grad_logits.has_value(), grad_features.has_value());
  job.logits = map_of(logits);
  job.grad_features = map_of(grad_features);
  job.grad_logits = map_of(grad_logits);
  job.grad_mass = data_of<T>(grad_mass);
  run(job, loops<T>().soft_sums_grad, features);
}

void similarity_fwd_kernel(Tensor features, Tensor weights, Optional bias, Optional labels, std::string metric,
                           double scale, int64_t ignore_index, double eps, Tensor logits, Optional own,
                           Optional norms) {
  const auto run = is_double(features) ? similarity<double> : similarity<float>;
  run(features, weights, bias, labels, metric, scale, ignore_index, eps, logits, own, norms);
}

void similarity_bwd_kernel(Tensor grad_logits, Optional grad_own, Tensor features, Tensor weights, Optional labels,
                           Optional norms, std::string metric, double scale, int64_t ignore_index, double eps,
                           Optional grad_features, Optional grad_weights) {
  const auto run = is_double(features) ? similarity_grad<double> : similarity_grad<float>;
  run(grad_logits, grad_own, features, weights, labels, norms, metric, scale, ignore_index, eps, grad_features,
      grad_weights);
}

void soft_sums_fwd_kernel(Tensor features, Tensor logits, Tensor sums, Tensor mass) {
  const auto run = is_double(features) ? soft_sums<double> : soft_sums<float>;
  run(features, logits, sums, mass);
}

void soft_sums_bwd_kernel(Tensor grad_sums, Tensor grad_mass, Tensor features, Tensor logits, Optional grad_features,
                          Optional grad_logits) {
  const auto run = is_double(features) ? soft_sums_grad<double> : soft_sums_grad<float>;
  run(grad_sums, grad_mass, features, logits, grad_features, grad_logits);
}

}  // namespace
}  // namespace metricseg::centers

METRICSEG_LIBRARY_IMPL(CPU, m) {
  m.impl("similarity_fwd_kernel", TORCH_BOX(&metricseg::centers::similarity_fwd_kernel));
  m.impl("similarity_bwd_kernel", TORCH_BOX(&metricseg::centers::similarity_bwd_kernel));
  m.impl("soft_sums_fwd_kernel", TORCH_BOX(&metricseg::centers::soft_sums_fwd_kernel));
  m.impl("soft_sums_bwd_kernel", TORCH_BOX(&metricseg::centers::soft_sums_bwd_kernel));
}
