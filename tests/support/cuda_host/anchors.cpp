// The CUDA kernels of the anchors family behind numpy arrays: the same launches as csrc/anchors/cuda.cu, run by the
// shim.
#include "host.h"

#include "../../../csrc/anchors/run.cuh"

using namespace metricseg::anchors;

static double deviations = 6.0;

static void sample_anchors_kernel(const py::array& labels, const Array& first, const py::array& seed,
                                  int64_t max_samples, int64_t max_views, int64_t min_pixels, bool half,
                                  int64_t num_classes, int64_t ignore_index, int64_t ignore_label,
                                  const py::array& index, const py::array& sampled, const py::array& count,
                                  const py::array& bad) {
  Problem p{};
  p.labels = map_of(labels);
  p.first = map_of(first);
  p.batch = labels.shape(0);
  p.height = labels.shape(1);
  p.width = labels.shape(2);
  p.classes = num_classes;
  p.ignore_index = ignore_index;
  p.ignore_label = ignore_label;
  p.seed = pointer<int64_t>(seed);
  p.rules = {max_samples, max_views, min_pixels, half};
  p.deviations = deviations;
  p.index = pointer<int64_t>(index);
  p.sampled = pointer<int64_t>(sampled);
  p.count = pointer<int64_t>(count);
  p.bad = pointer<int64_t>(bad);
  HostDevice device;
  sample_anchors(device, p);
}

template <typename T>
static Rows<T> describe(const py::array& map, const py::array& index, bool normalize, double eps, const py::array& rows,
                        const py::array& norms) {
  Rows<T> r{};
  r.map = map_of(map);
  r.batch = map.shape(0);
  r.channels = map.shape(1);
  r.height = map.shape(2);
  r.width = map.shape(3);
  r.count = index.shape(0);
  r.normalize = normalize;
  r.eps = static_cast<T>(eps);
  r.index = pointer<int64_t>(index);
  r.rows = map_of(rows);
  r.norms = pointer<T>(norms);
  return r;
}

template <typename T>
static void run_gather(const py::array& features, const py::array& index, bool normalize, double eps,
                       const py::array& rows, const py::array& norms) {
  HostDevice device;
  gather_pixels(device, describe<T>(features, index, normalize, eps, rows, norms));
}

template <typename T>
static void run_backward(const py::array& grad_rows, const py::array& rows, const py::array& norms,
                         const py::array& index, const py::array& order, bool normalize, double eps,
                         const py::array& grad) {
  Rows<T> r = describe<T>(grad, index, normalize, eps, rows, norms);
  r.order = pointer<int64_t>(order);
  r.grad_rows = map_of(grad_rows);
  HostDevice device;
  gather_pixels_backward(device, r);
}

PYBIND11_MODULE(anchors, m) {
  define_switches(m);
  m.def("slacken", [](double by) { deviations = by; });
  m.def("sample_anchors_kernel", sample_anchors_kernel);
  m.def("gather_pixels_fwd_kernel", [](const py::array& features, const py::array& index, bool normalize, double eps,
                                       const py::array& rows, const py::array& norms) {
    (is_double(features) ? run_gather<double> : run_gather<float>)(features, index, normalize, eps, rows, norms);
  });
  m.def("gather_pixels_bwd_kernel",
        [](const py::array& grad_rows, const py::array& rows, const py::array& norms, const py::array& index,
           const py::array& order, bool normalize, double eps, const py::array& grad) {
          (is_double(grad) ? run_backward<double> : run_backward<float>)(grad_rows, rows, norms, index, order,
                                                                         normalize, eps, grad);
        });
}
