// The CUDA kernels of the focal family behind numpy arrays: the same launches as csrc/focal/cuda.cu, run by the shim.
#include "host.h"

#include "../../csrc/focal/run.cuh"

using namespace metricseg::focal;

// The same types in the same order.
static Scalar scalar_of(const py::array& a) { return static_cast<Scalar>(static_cast<int>(type_of(a))); }

// The strides of [B, K, H, W], [B, H, W] or [].
static Strides strides_of(const py::array& a) {
  const auto s = [&](int i) { return static_cast<int64_t>(a.strides(i) / a.itemsize()); };
  if (a.ndim() == 4) return {s(0), s(1), s(2), s(3)};
  if (a.ndim() == 3) return {s(0), 0, s(1), s(2)};
  return {0, 0, 0, 0};
}

template <typename T>
static Problem<T> describe(const py::array& input, const py::array& target, const Array& grad_loss, double gamma,
                           int64_t ignore_index, bool align_corners, const Array& loss, const Array& grad) {
  Problem<T> p{};
  p.batch = input.shape(0);
  p.classes = static_cast<int>(input.shape(1));
  p.y = Axis::make(input.shape(2), target.shape(target.ndim() - 2), align_corners);
  p.x = Axis::make(input.shape(3), target.shape(target.ndim() - 1), align_corners);
  p.input = input.data();
  p.input_stride = strides_of(input);
  p.input_type = static_cast<int>(scalar_of(input));
  p.target = target.data();
  p.target_stride = strides_of(target);
  p.target_type = static_cast<int>(scalar_of(target));
  p.grad_loss = pointer<T>(grad_loss);
  if (grad_loss) p.grad_loss_stride = strides_of(*grad_loss);
  p.gamma = static_cast<T>(gamma);
  p.ignore_index = ignore_index;
  p.loss_map = loss && loss->ndim() > 0 ? pointer<T>(loss) : nullptr;
  p.grad = pointer<void>(grad);
  if (grad) p.grad_stride = strides_of(*grad);
  return p;
}

template <typename T>
static T* sum_of(const Array& loss) {
  return loss && loss->ndim() == 0 ? pointer<T>(loss) : nullptr;
}

template <typename T>
static void focal_kernel(HostDevice device, const py::array& input, const py::array& target, const Array& weight,
                         const Array& keep_above, const Array& grad_loss, double gamma, double label_smoothing,
                         int64_t ignore_index, bool align_corners, const Array& loss, const Array& totals,
                         const Array& argmax, const Array& grad) {
  auto p = describe<T>(input, target, grad_loss, gamma, ignore_index, align_corners, loss, grad);
  p.weight = pointer<T>(weight);
  p.keep_above = pointer<T>(keep_above);
  p.smoothing = static_cast<T>(label_smoothing);
  p.argmax = pointer<int32_t>(argmax);
  softmax_focal(device, p, sum_of<T>(loss), pointer<double>(totals));
}

template <typename T>
static void sigmoid_focal_kernel(HostDevice device, const py::array& input, const py::array& target,
                                 const Array& grad_loss, double gamma, double alpha, int64_t ignore_index,
                                 bool align_corners, const Array& loss, const Array& totals, const Array& grad) {
  auto p = describe<T>(input, target, grad_loss, gamma, ignore_index, align_corners, loss, grad);
  p.alpha = static_cast<T>(alpha);
  sigmoid_focal(device, p, sum_of<T>(loss), pointer<double>(totals));
}

template <typename T>
static void kth_largest_kernel(HostDevice device, const py::array& values, int64_t k, const py::array& result) {
  kth_largest(device, pointer<T>(values), values.size(), k, pointer<T>(result));
}

// The instantiation for double where the first array is double, else the one for float.
template <typename... Rest>
static auto by_dtype(void (*f64)(HostDevice, const py::array&, Rest...),
                     void (*f32)(HostDevice, const py::array&, Rest...)) {
  return [=](const py::array& first, Rest... rest) { (is_double(first) ? f64 : f32)({}, first, rest...); };
}

PYBIND11_MODULE(focal, m) {
  m.def("configure", configure);
  m.def("focal_kernel", by_dtype(focal_kernel<double>, focal_kernel<float>));
  m.def("sigmoid_focal_kernel", by_dtype(sigmoid_focal_kernel<double>, sigmoid_focal_kernel<float>));
  m.def("kth_largest_kernel", by_dtype(kth_largest_kernel<double>, kth_largest_kernel<float>));
}
