// The CUDA kernels of the predict family behind numpy arrays: the same launches as csrc/predict/cuda.cu, run by the shim.
#include "host.h"

#include "../../../csrc/predict/arguments.h"
#include "../../../csrc/predict/run.cuh"

using namespace metricseg;
using namespace metricseg::predict;

static void run(const Arguments<py::array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.maps[0]),
                       [&](auto zero) { metricseg::predict::predict<decltype(zero)>(device, a.cuda_params()); });
}

PYBIND11_MODULE(predict, m) {
  define_switches(m);
  m.def("predict_kernel", predict_kernel<py::array, run>);
  m.def("confusion_kernel", confusion_kernel<py::array, run>);
}
