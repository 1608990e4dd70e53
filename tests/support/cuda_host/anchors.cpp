// The CUDA kernels of the anchors family behind numpy arrays: the same launches as csrc/anchors/cuda.cu, run by the
// shim.
#include "host.h"

#include "../../../csrc/anchors/arguments.h"
#include "../../../csrc/anchors/run.cuh"

using namespace metricseg;
using namespace metricseg::anchors;

static double deviations = 6.0;

static void run_sample(const SampleArguments<py::array>& a) {
  HostDevice device;
  sample_anchors(device, a.params(deviations));
}

template <bool backward>
static void run_gather(const GatherArguments<py::array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.features), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? gather_pixels_bwd(device, params) : gather_pixels_fwd(device, params);
  });
}

PYBIND11_MODULE(anchors, m) {
  define_switches(m);
  m.def("slacken", [](double by) { deviations = by; });
  m.def("sample_anchors_kernel", sample_anchors_kernel<py::array, run_sample>);
  m.def("gather_pixels_fwd_kernel", gather_pixels_fwd_kernel<py::array, run_gather<false>>);
  m.def("gather_pixels_bwd_kernel", gather_pixels_bwd_kernel<py::array, run_gather<true>>);
}
