// Raw kernels of the focal family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/focal/op.py) has checked the arguments of the user and allocated the outputs. The checks
// here are those that memory safety depends on.

#include "../common/cuda/launch.h"
#include "../common/host/arguments.h"
#include "../common/host/library.h"
#include "run.cuh"

namespace metricseg::focal {
namespace {

Scalar scalar_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return Scalar::kFloat64;
    case ScalarType::Float:
      return Scalar::kFloat32;
    case ScalarType::BFloat16:
      return Scalar::kBFloat16;
    case ScalarType::Half:
      return Scalar::kFloat16;
    case ScalarType::Byte:
      return Scalar::kUInt8;
    case ScalarType::Int:
      return Scalar::kInt32;
    case ScalarType::Long:
      return Scalar::kInt64;
    default:
      STD_TORCH_CHECK(false, "metricseg: a dtype without a kernel");
  }
}

bool is_float(const Tensor& t) { return scalar_of(t) <= Scalar::kFloat16; }
// Strides of [B, K, H, W]; of [B, H, W], shared by the classes; of [], shared by all.
Strides strides_of(const Tensor& t) {
  if (t.dim() == 4) return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
  if (t.dim() == 3) return {t.stride(0), 0, t.stride(1), t.stride(2)};
  STD_TORCH_CHECK(t.dim() == 0, "metricseg: a tensor of 0, 3 or 4 dimensions is wanted");
  return {0, 0, 0, 0};
}

template <typename T>
Problem<T> describe(const Tensor& input, const Tensor& target, const Optional& grad_loss, double gamma,
                    int64_t ignore_index, bool align_corners, const Optional& loss, const Optional& totals,
                    const Optional& grad, bool per_class) {
  constexpr int64_t kLargest = int64_t(1) << 28;
  STD_TORCH_CHECK(input.dim() == 4 && is_float(input), "metricseg: input must be [B, K, h, w], floating");
  STD_TORCH_CHECK(target.dim() == (is_float(target) ? 4 : 3), "metricseg: target has the wrong shape");
  STD_TORCH_CHECK(target.is_cuda() && target.get_device_index() == input.get_device_index(),
                  "metricseg: target must be on the device of input");
  const int64_t B = input.size(0), K = input.size(1), h = input.size(2), w = input.size(3);
  const int64_t H = target.size(target.dim() - 2), W = target.size(target.dim() - 1);
  STD_TORCH_CHECK(target.size(0) == B && (target.dim() == 3 || target.size(1) == K), "metricseg: target does not fit");
  STD_TORCH_CHECK(K > 0 && std::max({K, h, w, H, W}) < kLargest, "metricseg: a dimension of 2^28 or more, or no class");
  STD_TORCH_CHECK(h * w > 0 || B * H * W == 0, "metricseg: input is empty while target is not");
  for (const Optional& map : {loss, grad_loss}) {
    if (!map || map->dim() == 0) continue;
    if (per_class) {
      check_shape(map, {B, K, H, W}, "loss map");
    } else {
      check_shape(map, {B, H, W}, "loss map");
    }
  }
  check_shape(totals, {kSums - 1}, "totals");
  check_shape(grad, {B, K, h, w}, "grad");
  Problem<T> p{};
  p.batch = B;
  p.classes = static_cast<int>(K);
  p.y = Axis::make(h, H, align_corners);
  p.x = Axis::make(w, W, align_corners);
  p.input = input.const_data_ptr();
  p.input_stride = strides_of(input);
  p.input_type = static_cast<int>(scalar_of(input));
  p.target = target.const_data_ptr();
  p.target_stride = strides_of(target);
  p.target_type = static_cast<int>(scalar_of(target));
  p.grad_loss = pointer<T>(grad_loss, input, kTypeOf<T>, "grad_loss", false);
  if (grad_loss) p.grad_loss_stride = strides_of(*grad_loss);
  p.gamma = static_cast<T>(gamma);
  p.ignore_index = ignore_index;
  if (loss && loss->dim() > 0) p.loss_map = pointer<T>(loss, input, kTypeOf<T>, "loss");
  p.grad = pointer<void>(grad, input, input.scalar_type(), "grad", false);
  if (grad) p.grad_stride = strides_of(*grad);
  return p;
}

// Pointer to the summed loss; null if a map is wanted.
template <typename T>
T* sum_of(const Optional& loss, const Tensor& input) {
  return loss && loss->dim() == 0 ? pointer<T>(loss, input, kTypeOf<T>, "loss") : nullptr;
}

template <typename T>
void run_focal(const Tensor& input, const Tensor& target, const Optional& weight, const Optional& keep_above,
               const Optional& grad_loss, double gamma, double label_smoothing, int64_t ignore_index,
               bool align_corners, const Optional& loss, const Optional& totals, const Optional& argmax,
               const Optional& grad) {
  auto p = describe<T>(input, target, grad_loss, gamma, ignore_index, align_corners, loss, totals, grad, false);
  STD_TORCH_CHECK(!is_float(target), "metricseg: target must hold labels");
  check_shape(weight, {p.classes}, "weight");
  check_shape(keep_above, {}, "keep_above");
  check_shape(argmax, {p.batch, p.y.labels, p.x.labels}, "argmax");
  p.weight = pointer<T>(weight, input, kTypeOf<T>, "weight");
  p.keep_above = pointer<T>(keep_above, input, kTypeOf<T>, "keep_above");
  p.smoothing = static_cast<T>(label_smoothing);
  p.argmax = pointer<int32_t>(argmax, input, ScalarType::Int, "argmax");
  CudaDevice device(input);
  softmax_focal(device, p, sum_of<T>(loss, input), pointer<double>(totals, input, ScalarType::Double, "totals"));
}

template <typename T>
void run_sigmoid_focal(const Tensor& input, const Tensor& target, const Optional& grad_loss, double gamma, double alpha,
                       int64_t ignore_index, bool align_corners, const Optional& loss, const Optional& totals,
                       const Optional& grad) {
  auto p = describe<T>(input, target, grad_loss, gamma, ignore_index, align_corners, loss, totals, grad, true);
  p.alpha = static_cast<T>(alpha);
  CudaDevice device(input);
  sigmoid_focal(device, p, sum_of<T>(loss, input), pointer<double>(totals, input, ScalarType::Double, "totals"));
}

void focal_kernel(Tensor input, Tensor target, Optional weight, Optional keep_above, Optional grad_loss, double gamma,
                  double label_smoothing, int64_t ignore_index, bool align_corners, Optional loss, Optional totals,
                  Optional argmax, Optional grad) {
  (is_double(input) ? run_focal<double> : run_focal<float>)(input, target, weight, keep_above, grad_loss, gamma,
                                                            label_smoothing, ignore_index, align_corners, loss, totals,
                                                            argmax, grad);
}

void sigmoid_focal_kernel(Tensor input, Tensor target, Optional grad_loss, double gamma, double alpha,
                          int64_t ignore_index, bool align_corners, Optional loss, Optional totals, Optional grad) {
  (is_double(input) ? run_sigmoid_focal<double> : run_sigmoid_focal<float>)(input, target, grad_loss, gamma, alpha,
                                                                            ignore_index, align_corners, loss, totals,
                                                                            grad);
}

template <typename T>
void run_kth_largest(const Tensor& values, int64_t k, const Tensor& result) {
  STD_TORCH_CHECK(k >= 0, "metricseg: k must be >= 0, got ", k);
  check_shape(result, {}, "result");
  const T* data = pointer<T>(values, values, kTypeOf<T>, "values");
  CudaDevice device(values);
  kth_largest(device, data, values.numel(), k, pointer<T>(result, values, kTypeOf<T>, "result"));
}

void kth_largest_kernel(Tensor values, int64_t k, Tensor result) {
  (is_double(values) ? run_kth_largest<double> : run_kth_largest<float>)(values, k, result);
}

}  // namespace
}  // namespace metricseg::focal

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  m.impl("focal_kernel", TORCH_BOX(&metricseg::focal::focal_kernel));
  m.impl("sigmoid_focal_kernel", TORCH_BOX(&metricseg::focal::sigmoid_focal_kernel));
  m.impl("kth_largest_kernel", TORCH_BOX(&metricseg::focal::kth_largest_kernel));
}
