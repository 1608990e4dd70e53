// The CUDA kernels of the refine family behind numpy arrays: the same launches as csrc/refine/cuda.cu, run by the shim.
#include "host.h"

#include "../../../csrc/refine/arguments.h"
#include "../../../csrc/refine/run.cuh"

using namespace metricseg;
using namespace metricseg::refine;

template <bool backward>
static void run(const RefineArguments<py::array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.features), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? refine_bwd(device, params) : refine_fwd(device, params);
  });
}

PYBIND11_MODULE(refine, m) {
  define_switches(m);
  m.def("refine_fwd_kernel", refine_fwd_kernel<py::array, run<false>>);
  m.def("refine_bwd_kernel", refine_bwd_kernel<py::array, run<true>>);
}
