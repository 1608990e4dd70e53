// The centers family on the CPU: turns the tensors of torch into CpuParams, and shares the pixels among the threads of
// torch. Sums over pixels are formed in parts that depend on the shapes alone, and are added in order. So the bits are
// the same whatever the number of threads.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/simd_choice.h"
#include "../common/host/torch_map.h"
#include "cpu_params.h"

namespace metricseg::centers {
namespace {

constexpr int64_t kPanelBytes = int64_t{320} << 10;  // of the tiles of features in a panel
constexpr int64_t kMostPanel = 1024;
constexpr int64_t kLeastParts = 4;  // of all sums over pixels
constexpr int64_t kMostParts = 64;
constexpr int64_t kPartShare = 96;  // parts take up to this share of the maps' memory

template <typename T>
const Loops<T>& loops() {
  static const Loops<T>& chosen = METRICSEG_WIDEST_OF(T);
  return chosen;
}

template <typename T>
using Values = decltype(aligned_values<T>(0));

// Rows [sets, K, C], packed plain and transposed, for both products.
template <typename T>
struct Packed {
  Values<T> rows, rows_t;

  Packed(const Tensor& tensor, CpuParams<T>& params, bool plain, bool transposed) {
    const int64_t sets = tensor.size(0), K = tensor.size(1), C = tensor.size(2);
    const int64_t s = tensor.stride(0), k = tensor.stride(1), c = tensor.stride(2);
    params.one_set = sets == 1;
    params.rows_stride = (K + kPadRows) * C;
    params.rows_t_stride = (C + kPadRows) * K;
    if (plain) rows = aligned_values<T>(sets * params.rows_stride);
    if (transposed) rows_t = aligned_values<T>(sets * params.rows_t_stride);
    parallel(sets, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const T* const from = data_of<T>(tensor) + i * s;
        if (plain) loops<T>().pack(from, k, c, K, C, rows.get() + i * params.rows_stride);
        if (transposed) loops<T>().pack(from, c, k, C, K, rows_t.get() + i * params.rows_t_stride);
      }
    });
    params.rows = rows.get();
    params.rows_t = rows_t.get();
  }
};

template <typename T>
CpuParams<T> make_params(const Tensor& features, int64_t classes, int64_t ignore_index) {
  CpuParams<T> params{};
  params.channels = features.size(1);
  params.classes = classes;
  params.width = features.size(3);
  const int64_t pixel = std::max<int64_t>(std::max(params.channels, classes), 1) * sizeof(T);
  params.panel = std::clamp(kPanelBytes / pixel / kMostTile * kMostTile, 4 * kMostTile, kMostPanel);
  params.ignore_index = ignore_index;
  params.features = map_of(features);
  return params;
}

// loop over all pixels of all images.
template <typename T>
void run(const CpuParams<T>& params, Loop<T> loop, const Tensor& features) {
  const int64_t pixels = features.size(2) * features.size(3), panels = ceil_div(pixels, params.panel);
  parallel(features.size(0) * panels, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = aligned_values<T>(params.scratch_values());
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % panels * params.panel;
      loop(params, unit / panels, first, std::min(first + params.panel, pixels), scratch.get(), nullptr, nullptr);
    }
  });
}

// The same with sums [groups, K, C] and mass [groups, K] over the pixels of each image, or of all (groups = 1).
template <typename T>
void run_sums(const CpuParams<T>& params, Loop<T> loop, const Tensor& features, int64_t groups, T* sums, T* mass) {
  const int64_t images = features.size(0), pixels = features.size(2) * features.size(3);
  const int64_t panels = ceil_div(pixels, params.panel), units = groups > 0 ? images / groups * panels : 0;
  const int64_t values = params.classes * params.channels, part_values = values + params.classes;
  const int64_t fit =
      images * pixels * (params.channels + params.classes) / (kPartShare * std::max<int64_t>(part_values, 1));
  const int64_t most = std::clamp(fit, kLeastParts, kMostParts) / std::max<int64_t>(groups, 1);
  int64_t parts = 1;
  while (2 * parts <= std::min(most, units)) parts *= 2;
  const auto partial = aligned_values<T>(groups * parts * part_values);
  parallel(groups * parts, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = aligned_values<T>(params.scratch_values());
    for (int64_t part = begin; part < end; ++part) {
      T* const found = partial.get() + part * part_values;
      std::fill_n(found, part_values, T(0));
      const int64_t group = part / parts, index = part % parts;
      for (int64_t unit = units * index / parts; unit < units * (index + 1) / parts; ++unit) {
        const int64_t first = unit % panels * params.panel, image = groups == 1 ? unit / panels : group;
        loop(params, image, first, std::min(first + params.panel, pixels), scratch.get(), found, found + values);
      }
    }
  });
  parallel(groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t group = begin; group < end; ++group) {
      std::fill_n(sums + group * values, values, T(0));
      if (mass) std::fill_n(mass + group * params.classes, params.classes, T(0));
      for (int64_t index = 0; index < parts; ++index) {
        const T* const found = partial.get() + (group * parts + index) * part_values;
        for (int64_t i = 0; i < values; ++i) sums[group * values + i] += found[i];
        for (int64_t k = 0; mass && k < params.classes; ++k) mass[group * params.classes + k] += found[values + k];
      }
    }
  });
}

template <typename T>
void set_metric(CpuParams<T>& params, const std::string& metric, double scale, double eps) {
  params.direction = metric == "cosine";
  params.square = static_cast<T>(metric == "euclidean" ? scale : 0.0);
  params.eps = static_cast<T>(eps);
}

void similarity_fwd_kernel(Tensor features, Tensor weights, Optional bias, Optional labels, std::string metric,
                           double scale, int64_t ignore_index, double eps, Tensor logits, Optional target_similarity,
                           Optional norms) {
  dispatch_accumulator(type_of(features), [&](auto zero) {
    using T = decltype(zero);
    auto params = make_params<T>(features, weights.size(1), ignore_index);
    const Packed<T> packed(weights, params, true, false);
    set_metric(params, metric, scale, eps);
    params.bias = data_of<T>(bias);
    params.logits = fresh_map_of(logits);
    params.labels = map_of(labels);
    params.target_similarity = map_of(target_similarity);
    params.norms = map_of(norms);
    run(params, loops<T>().similarity_fwd, features);
  });
}

void similarity_bwd_kernel(Tensor grad_logits, Optional grad_target_similarity, Tensor features, Tensor weights,
                           Optional labels, Optional norms, std::string metric, double scale, int64_t ignore_index,
                           double eps, Optional grad_features, Optional grad_weights) {
  dispatch_accumulator(type_of(features), [&](auto zero) {
    using T = decltype(zero);
    auto params = make_params<T>(features, weights.size(1), ignore_index);
    const Packed<T> packed(weights, params, false, grad_features.has_value());
    set_metric(params, metric, scale, eps);
    params.grad_logits = map_of(grad_logits);
    params.grad_target_similarity = map_of(grad_target_similarity);
    params.labels = map_of(labels);
    params.norms = map_of(norms);
    params.grad_features = fresh_map_of(grad_features);
    if (grad_weights) {
      T* const sums = data_of<T>(grad_weights);
      run_sums<T>(params, loops<T>().similarity_bwd, features, weights.size(0), sums, nullptr);
    } else {
      run(params, loops<T>().similarity_bwd, features);
    }
  });
}

void soft_sums_fwd_kernel(Tensor features, Tensor logits, Tensor sums, Tensor mass) {
  dispatch_accumulator(type_of(features), [&](auto zero) {
    using T = decltype(zero);
    auto params = make_params<T>(features, logits.size(1), 0);
    params.logits = map_of(logits);
    run_sums(params, loops<T>().soft_sums_fwd, features, sums.size(0), data_of<T>(sums), data_of<T>(mass));
  });
}

void soft_sums_bwd_kernel(Tensor grad_sums, Tensor grad_mass, Tensor features, Tensor logits, Optional grad_features,
                          Optional grad_logits) {
  dispatch_accumulator(type_of(features), [&](auto zero) {
    using T = decltype(zero);
    auto params = make_params<T>(features, logits.size(1), 0);
    const Packed<T> packed(grad_sums, params, grad_logits.has_value(), grad_features.has_value());
    params.logits = map_of(logits);
    params.grad_features = fresh_map_of(grad_features);
    params.grad_logits = fresh_map_of(grad_logits);
    params.grad_mass = data_of<T>(grad_mass);
    run(params, loops<T>().soft_sums_bwd, features);
  });
}

}  // namespace
}  // namespace metricseg::centers

METRICSEG_LIBRARY_IMPL(CPU, m) {
  m.impl("similarity_fwd_kernel", TORCH_BOX(&metricseg::centers::similarity_fwd_kernel));
  m.impl("similarity_bwd_kernel", TORCH_BOX(&metricseg::centers::similarity_bwd_kernel));
  m.impl("soft_sums_fwd_kernel", TORCH_BOX(&metricseg::centers::soft_sums_fwd_kernel));
  m.impl("soft_sums_bwd_kernel", TORCH_BOX(&metricseg::centers::soft_sums_bwd_kernel));
}
