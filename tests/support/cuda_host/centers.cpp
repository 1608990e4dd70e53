// The CUDA kernels of the centers family behind numpy arrays: the same launches as csrc/centers/cuda.cu, run by the
// shim.
#include "host.h"
#include "tensor_cores.h"

#include "../../../csrc/centers/arguments.h"
#include "../../../csrc/centers/run.cuh"

using namespace metricseg;
using namespace metricseg::centers;
using py::array;

template <bool backward>
static void run_similarity(const SimilarityArguments<array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.features), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? similarity_bwd(device, params) : similarity_fwd(device, params);
  });
}

template <bool backward>
static void run_soft(const SoftArguments<array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.features), [&](auto zero) {
    using T = decltype(zero);
    const auto params = a.template params<T>();
    backward ? soft_means_bwd(device, params, a.means.template grad_params<T>())
             : soft_means_fwd(device, params, a.means.template params<T>());
  });
}

template <bool backward>
static void run_hard(const HardArguments<array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.features), [&](auto zero) {
    using T = decltype(zero);
    const auto params = a.template params<T>();
    backward ? hard_means_bwd(device, params, a.means.template grad_params<T>())
             : hard_means_fwd(device, params, a.means.template params<T>());
  });
}

template <bool backward>
static void run_fold(const FoldArguments<array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.centers), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? fold_bwd(device, params) : fold_fwd(device, params);
  });
}

static void run_pull(const PullArguments<array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.pull), [&](auto zero) { mean_pull(device, a.template params<decltype(zero)>()); });
}

PYBIND11_MODULE(centers, m) {
  define_switches(m);
  m.def("pixel_similarity_fwd_kernel", similarity_fwd_kernel<array, run_similarity<false>>);
  m.def("pixel_similarity_bwd_kernel", similarity_bwd_kernel<array, run_similarity<true>>);
  m.def("soft_class_means_fwd_kernel", soft_means_fwd_kernel<array, run_soft<false>>);
  m.def("soft_class_means_bwd_kernel", soft_means_bwd_kernel<array, run_soft<true>>);
  m.def("hard_class_means_fwd_kernel", hard_means_fwd_kernel<array, run_hard<false>>);
  m.def("hard_class_means_bwd_kernel", hard_means_bwd_kernel<array, run_hard<true>>);
  m.def("fold_rows_fwd_kernel", fold_fwd_kernel<array, run_fold<false>>);
  m.def("fold_rows_bwd_kernel", fold_bwd_kernel<array, run_fold<true>>);
  m.def("center_pull_fwd_kernel", pull_kernel<array, run_pull>);
}
