// The CUDA kernels of the focal family behind numpy arrays: the same launches as csrc/focal/cuda.cu, run by the shim.
#include "host.h"

#include "../../../csrc/focal/run.cuh"

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

// The geometry of a softmax walk over contiguous logits: rows and columns of cells in a tile, blocks that are resident
// at a time, and the chunks of label columns that each column of tiles takes.
static py::tuple walk_geometry(int64_t batch, int classes, int64_t h, int64_t w, int64_t H, int64_t W, bool grad) {
  Problem<float> p{};
  p.batch = batch;
  p.classes = classes;
  p.y = Axis::make(h, H, false);
  p.x = Axis::make(w, W, false);
  p.input_stride = p.grad_stride = {classes * h * w, h * w, w, 1};
  float any;
  p.grad = grad ? &any : nullptr;
  const Plan plan = make_plan(p, Tiles<float>::kSoftmax, std::size(Tiles<float>::kSoftmax), true, limits_of_device);
  std::vector<int> chunks;
  for (int t = 0; t < plan.tiles_x; ++t) {
    const Tile tile = tile_at(plan, p.y, p.x, t);
    Chunk chunk = first_chunk(plan, p.x, tile);
    for (chunks.push_back(1); chunk.x1 < chunk.x_end; ++chunks.back()) chunk = next_chunk(plan, p.x, tile, chunk);
  }
  const int resident = resident_blocks<float>(plan.kt, grad) * limits_of_device.multiprocessors;
  return py::make_tuple(plan.tile_y, plan.tile_x, resident, chunks);
}

PYBIND11_MODULE(focal, m) {
  define_switches(m);
  m.def("walk_geometry", walk_geometry);
  m.def("focal_kernel", by_dtype(focal_kernel<double>, focal_kernel<float>));
  m.def("sigmoid_focal_kernel", by_dtype(sigmoid_focal_kernel<double>, sigmoid_focal_kernel<float>));
  m.def("kth_largest_kernel", by_dtype(kth_largest_kernel<double>, kth_largest_kernel<float>));
}
