// The CUDA kernels of the contrast family behind numpy arrays: the same launches as csrc/contrast/cuda.cu, run by the
// shim.
#include "host.h"
#include "tensor_cores.h"

#include "../../../csrc/contrast/arguments.h"
#include "../../../csrc/contrast/dispatch.cuh"
#include "../../../csrc/contrast/sets.cuh"

using namespace metricseg;
using namespace metricseg::contrast;

template <bool backward>
static void run(const ContrastArguments<py::array>& a) {
  dispatch_accumulator(type_of(*a.x.features), [&](auto zero) {
    auto p = a.template params<decltype(zero)>();
    if (backward) p.reduce = rank_of(a.terms) == 1;
    HostDevice device;
    dispatch_products(p, [&](auto products) { launch<decltype(products)>(device, p, backward); });
  });
}

static void run_sort(const SortArguments<py::array>& a) {
  HostDevice device;
  dispatch_accumulator(a.accumulator(), [&](auto zero) { sort_rows(device, a.template params<decltype(zero)>()); });
}

static void run_sets(const SetsArguments<py::array>& a) {
  HostDevice device;
  mark_sets(device, a.params());
}

static void run_mean(const MeanArguments<py::array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.terms), [&](auto zero) { mean(device, a.template params<decltype(zero)>()); });
}

PYBIND11_MODULE(contrast, m) {
  define_switches(m);
  m.def("prototype_sets_kernel", prototype_sets_kernel<py::array, run_sets>);
  m.def("sort_rows_kernel", sort_rows_kernel<py::array, run_sort>);
  m.def("contrast_mean_kernel", contrast_mean_kernel<py::array, run_mean>);
  m.def("contrast_fwd_kernel", contrast_fwd_kernel<py::array, run<false>>);
  m.def("contrast_bwd_kernel", contrast_bwd_kernel<py::array, run<true>>);
}
