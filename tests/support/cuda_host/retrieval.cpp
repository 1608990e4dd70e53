// The CUDA kernels of the retrieval family behind numpy arrays: the same launches as csrc/retrieval/cuda.cu, run by the
// shim.
#include "host.h"

#include "../../../csrc/retrieval/arguments.h"
#include "../../../csrc/retrieval/run.cuh"

using namespace metricseg;
using namespace metricseg::retrieval;

static void run(const TopkArguments<py::array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.queries), [&](auto zero) { topk(device, a.template params<decltype(zero)>()); });
}

PYBIND11_MODULE(retrieval, m) {
  define_switches(m);
  m.def("topk_kernel", topk_kernel<py::array, run>);
}
