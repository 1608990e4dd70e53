// The CUDA kernels of the region family behind numpy arrays: the same launches as csrc/region/cuda.cu, run by the shim.
#include "host.h"

#include "../../../csrc/region/arguments.h"
#include "../../../csrc/region/run.cuh"

using namespace metricseg;
using namespace metricseg::region;

template <bool backward>
static void run(const Arguments<py::array>& a) {
  HostDevice device;
  a.dispatch([&](auto zero) {
    const auto params = a.params<decltype(zero)>();
    backward ? region_bwd(device, params) : region_fwd(device, params);
  });
}

PYBIND11_MODULE(region, m) {
  define_switches(m);
  m.def("region_fwd_kernel", region_fwd_kernel<py::array, run<false>>);
  m.def("region_bwd_kernel", region_bwd_kernel<py::array, run<true>>);
}
