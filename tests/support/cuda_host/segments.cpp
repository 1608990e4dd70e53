// The CUDA kernels of the segments family behind numpy arrays: the same launches as csrc/segments/cuda.cu, run by the
// shim.
#include "host.h"

#include "../../../csrc/segments/arguments.h"
#include "../../../csrc/segments/run.cuh"

using namespace metricseg;
using namespace metricseg::segments;

static void run_kmeans(const KmeansArguments<py::array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.embeddings),
                       [&](auto zero) { spherical_kmeans(device, a.template params<decltype(zero)>(), a.iterations); });
}

static void run_split(const SplitArguments<py::array>& a) {
  HostDevice device;
  split_by_label(device, a.params());
}

template <bool backward>
static void run_sums(const SumsArguments<py::array>& a) {
  HostDevice device;
  dispatch_accumulator(type_of(a.x), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? label_sums_bwd(device, params) : label_sums_fwd(device, params);
  });
}

// As metricseg_kernels/segments/op.py calls it.
static void spherical_kmeans_kernel(py::array embeddings, Array location, Array valid, Array init, int64_t rows,
                                    int64_t columns, int64_t iterations, bool coordinated, bool align_corners,
                                    py::array ids) {
  kmeans_kernel<py::array, run_kmeans>(embeddings, location, valid, init, rows, columns, iterations, coordinated,
                                       align_corners, 1e-12, ids);
}

PYBIND11_MODULE(segments, m) {
  define_switches(m);
  m.def("spherical_kmeans_kernel", spherical_kmeans_kernel);
  m.def("split_by_label_kernel", split_by_label_kernel<py::array, run_split>);
  m.def("segment_sums_fwd_kernel", segment_sums_fwd_kernel<py::array, run_sums<false>>);
  m.def("segment_sums_bwd_kernel", segment_sums_bwd_kernel<py::array, run_sums<true>>);
}
