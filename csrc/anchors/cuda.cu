// Raw kernels of the anchors family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/anchors/op.py) has checked the arguments of the user and allocated the outputs.

#include "../common/cuda/launch.h"
#include "../common/host/arguments.h"
#include "../common/host/library.h"
#include "../common/host/torch_map.h"
#include "run.cuh"

namespace metricseg::anchors {
namespace {

void on_device_of(const Tensor& t, const Tensor& input, const char* name) {
  STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == input.get_device_index(), "metricseg: ", name,
                  " must be on the device of the first argument");
}

int64_t* integers(const Tensor& t, std::initializer_list<int64_t> shape, const Tensor& input, const char* name) {
  check_shape(t, shape, name);
  return pointer<int64_t>(t, input, ScalarType::Long, name);
}

void sample_anchors_kernel(Tensor labels, Optional first, Tensor seed, int64_t max_samples, int64_t max_views,
                           int64_t min_pixels, bool half, int64_t num_classes, int64_t ignore_index,
                           int64_t ignore_label, Tensor index, Tensor sampled, Tensor count, Tensor bad) {
  STD_TORCH_CHECK(labels.dim() == 3, "metricseg: labels must be [B, h, w]");
  const int64_t B = labels.size(0), h = labels.size(1), w = labels.size(2);
  STD_TORCH_CHECK(h * w < int64_t(1) << 32, "metricseg: an image of 2^32 pixels or more");
  STD_TORCH_CHECK(num_classes > 0 && max_samples > 0 && max_samples < int64_t(1) << 31 && max_views > 0,
                  "metricseg: num_classes, max_samples or max_views out of range");
  const Type type = type_of(labels);
  STD_TORCH_CHECK(type >= Type::u8, "metricseg: labels must be integers");
  check_shape(first, {B, h, w}, "first");
  pointer<uint8_t>(first, labels, ScalarType::Byte, "first", false);
  Problem p{};
  p.labels = map_of(labels);
  p.first = map_of(first);
  p.batch = B;
  p.height = h;
  p.width = w;
  p.classes = num_classes;
  p.ignore_index = ignore_index;
  p.ignore_label = ignore_label;
  p.seed = integers(seed, {}, labels, "seed");
  p.rules = {max_samples, max_views, min_pixels, half};
  p.deviations = 6.0;
  p.index = integers(index, {max_samples}, labels, "index");
  p.sampled = integers(sampled, {max_samples}, labels, "sampled");
  p.count = integers(count, {}, labels, "count");
  p.bad = integers(bad, {2}, labels, "bad");
  CudaDevice device(labels);
  sample_anchors(device, p);
}

// [S, C] as a map of S rows and C columns.
Map matrix(const Tensor& t, int64_t rows, const Tensor& map, const char* name) {
  check_shape(t, {rows, map.size(1)}, name);
  on_device_of(t, map, name);
  STD_TORCH_CHECK(t.scalar_type() == map.scalar_type(), "metricseg: ", name, " has the wrong dtype");
  Map matrix;
  matrix.data = static_cast<char*>(const_cast<void*>(t.const_data_ptr()));
  matrix.type = type_of(t);
  matrix.size = bytes_of(matrix.type);
  matrix.y = t.stride(0);
  matrix.x = t.stride(1);
  return matrix;
}

template <typename T>
Rows<T> describe(const Tensor& map, const Tensor& index, bool normalize, double eps, const Tensor& rows,
                 const Tensor& norms) {
  STD_TORCH_CHECK(map.dim() == 4 && index.dim() == 1, "metricseg: a map [B, C, h, w] and an index [S] are wanted");
  Rows<T> r{};
  r.map = map_of(map);
  STD_TORCH_CHECK(r.map.type <= Type::f16, "metricseg: the map must be floating");
  r.batch = map.size(0);
  r.channels = map.size(1);
  r.height = map.size(2);
  r.width = map.size(3);
  r.count = index.size(0);
  r.normalize = normalize;
  r.eps = static_cast<T>(eps);
  r.index = integers(index, {r.count}, map, "index");
  r.rows = matrix(rows, r.count, map, "rows");
  STD_TORCH_CHECK(rows.is_contiguous(), "metricseg: rows must be contiguous");
  check_shape(norms, {r.count}, "norms");
  r.norms = pointer<T>(norms, map, kTypeOf<T>, "norms");
  return r;
}

template <typename T>
void run_gather(const Tensor& features, const Tensor& index, bool normalize, double eps, const Tensor& rows,
                const Tensor& norms) {
  const Rows<T> r = describe<T>(features, index, normalize, eps, rows, norms);
  CudaDevice device(features);
  gather_pixels(device, r);
}

template <typename T>
void run_backward(const Tensor& grad_rows, const Tensor& rows, const Tensor& norms, const Tensor& index,
                  const Tensor& order, bool normalize, double eps, const Tensor& grad) {
  Rows<T> r = describe<T>(grad, index, normalize, eps, rows, norms);
  const bool last = grad.stride(1) == 1 && grad.stride(3) == grad.size(1);
  STD_TORCH_CHECK(grad.is_contiguous() || (last && grad.stride(2) == grad.size(1) * grad.size(3) &&
                                           grad.stride(0) == grad.size(1) * grad.size(2) * grad.size(3)),
                  "metricseg: grad must be contiguous or channels-last");
  r.order = integers(order, {r.count}, grad, "order");
  r.grad_rows = matrix(grad_rows, r.count, grad, "grad_rows");
  CudaDevice device(grad);
  gather_pixels_backward(device, r);
}

void gather_pixels_fwd_kernel(Tensor features, Tensor index, bool normalize, double eps, Tensor rows, Tensor norms) {
  (is_double(features) ? run_gather<double> : run_gather<float>)(features, index, normalize, eps, rows, norms);
}

void gather_pixels_bwd_kernel(Tensor grad_rows, Tensor rows, Tensor norms, Tensor index, Tensor order, bool normalize,
                              double eps, Tensor grad) {
  (is_double(grad) ? run_backward<double> : run_backward<float>)(grad_rows, rows, norms, index, order, normalize, eps,
                                                                 grad);
}

}  // namespace
}  // namespace metricseg::anchors

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  m.impl("sample_anchors_kernel", TORCH_BOX(&metricseg::anchors::sample_anchors_kernel));
  m.impl("gather_pixels_fwd_kernel", TORCH_BOX(&metricseg::anchors::gather_pixels_fwd_kernel));
  m.impl("gather_pixels_bwd_kernel", TORCH_BOX(&metricseg::anchors::gather_pixels_bwd_kernel));
}
