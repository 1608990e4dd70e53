// The CUDA kernels of the distill family behind numpy arrays: the same launches as csrc/distill/cuda.cu, run by the shim.
#include "host.h"

#include "../../../csrc/distill/arguments.h"
#include "../../../csrc/distill/run.cuh"

using namespace metricseg;
using namespace metricseg::distill;

static void run(const Arguments<py::array>& a) {
  HostDevice device;
  a.dispatch([&](auto zero) { metricseg::distill::distill(device, a.params<decltype(zero)>()); });
}

PYBIND11_MODULE(distill, m) {
  define_switches(m);
  m.def("distill_kernel", distill_kernel<py::array, run>);
}
