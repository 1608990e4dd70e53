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

PYBIND11_MODULE(centers, m) {
  define_switches(m);
  m.def("pixel_similarity_fwd_kernel", similarity_fwd_kernel<array, run_similarity<false>>);
  m.def("pixel_similarity_bwd_kernel", similarity_bwd_kernel<array, run_similarity<true>>);
  m.def("soft_class_sums_fwd_kernel", soft_sums_fwd_kernel<array, run_soft<false>>);
  m.def("soft_class_sums_bwd_kernel", soft_sums_bwd_kernel<array, run_soft<true>>);
  m.def("hard_class_sums_fwd_kernel", hard_sums_fwd_kernel<array, run_hard<false>>);
  m.def("hard_class_sums_bwd_kernel", hard_sums_bwd_kernel<array, run_hard<true>>);
}
