// The CUDA kernels of the centers family behind numpy arrays: the same launches as csrc/centers/cuda.cu, run by the
// shim. set_exact(whether products of fp32 maps are exact), else in tf32.
#include "host.h"
#include "tensor_cores.h"

#include "../../../csrc/centers/arguments.h"
#include "../../../csrc/centers/run.cuh"

using namespace metricseg;
using namespace metricseg::centers;
using py::array;

static bool exact = true;
constexpr double kEps = 1e-12;

template <bool backward>
static void run_similarity(const SimilarityArguments<array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.features), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? similarity_bwd(device, params) : similarity_fwd(device, params);
  });
}

template <bool backward>
static void run_soft(const SoftSumsArguments<array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.features), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? soft_sums_bwd(device, params) : soft_sums_fwd(device, params);
  });
}

template <bool backward>
static void run_hard(const HardSumsArguments<array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.features), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? label_sums_bwd(device, params) : label_sums_fwd(device, params);
  });
}

// As metricseg_kernels/centers/cuda.py has them.
static void similarity_fwd(array features, array weights, Array bias, Array labels, std::string metric, double scale,
                           int64_t ignore_index, array logits, Array target_similarity, Array norms) {
  similarity_fwd_kernel<array, run_similarity<false>>(features, weights, bias, labels, metric, scale, ignore_index,
                                                      kEps, exact, logits, target_similarity, norms);
}

static void similarity_bwd(array grad_logits, Array grad_target_similarity, array features, array weights, Array labels,
                           Array norms, std::string metric, double scale, int64_t ignore_index, Array logits,
                           Array target_similarity, Array grad_features, Array grad_weights) {
  similarity_bwd_kernel<array, run_similarity<true>>(grad_logits, grad_target_similarity, features, weights, labels,
                                                     norms, metric, scale, ignore_index, kEps, exact, logits,
                                                     target_similarity, grad_features, grad_weights);
}

static void class_sums_fwd(array features, array assignment, int64_t ignore_index, array sums, array mass) {
  if (is_floating(type_of(assignment))) {
    soft_sums_fwd_kernel<array, run_soft<false>>(features, assignment, exact, sums, mass);
  } else {
    hard_sums_fwd_kernel<array, run_hard<false>>(features, assignment, ignore_index, sums, mass);
  }
}

static void class_sums_bwd(array grad_sums, array grad_mass, array features, array assignment, int64_t ignore_index,
                           Array grad_features, Array grad_assignment) {
  if (is_floating(type_of(assignment))) {
    soft_sums_bwd_kernel<array, run_soft<true>>(grad_sums, grad_mass, features, assignment, exact, grad_features,
                                                grad_assignment);
  } else if (grad_features) {
    hard_sums_bwd_kernel<array, run_hard<true>>(grad_sums, assignment, ignore_index, *grad_features);
  }
}

PYBIND11_MODULE(centers, m) {
  define_switches(m);
  m.def("set_exact", [](bool wanted) { exact = wanted; });
  m.def("similarity_fwd_kernel", ::similarity_fwd);
  m.def("similarity_bwd_kernel", ::similarity_bwd);
  m.def("class_sums_fwd_kernel", ::class_sums_fwd);
  m.def("class_sums_bwd_kernel", ::class_sums_bwd);
}
