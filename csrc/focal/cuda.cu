// Raw kernels of the focal family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/focal/op.py) has checked the arguments of the user and allocated the outputs. The checks
// here are those that memory safety depends on.

#include "../common/cuda/launch.h"
#include "../common/host/arguments.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "run.cuh"

namespace metricseg::focal {
namespace {

void check_map(const Optional& t, const Arguments<Tensor>& a, bool per_class, const char* name) {
  if (!t || t->dim() == 0) return;
  const int64_t B = a.input.size(0), K = a.input.size(1), rank = a.target.dim();
  const int64_t H = a.target.size(rank - 2), W = a.target.size(rank - 1);
  per_class ? check_shape(t, {B, K, H, W}, name) : check_shape(t, {B, H, W}, name);
}

void check(const Arguments<Tensor>& a, bool per_class) {
  constexpr int64_t kLargest = int64_t(1) << 28;
  const Tensor &input = a.input, &target = a.target;
  const bool dense = is_floating(type_of(target));
  STD_TORCH_CHECK(input.dim() == 4 && is_floating(type_of(input)), "metricseg: input must be [B, K, h, w], floating");
  STD_TORCH_CHECK(target.dim() == (dense ? 4 : 3), "metricseg: target has the wrong shape");
  STD_TORCH_CHECK(per_class || !dense, "metricseg: target must hold labels");
  const int64_t B = input.size(0), K = input.size(1), h = input.size(2), w = input.size(3);
  const int64_t H = target.size(target.dim() - 2), W = target.size(target.dim() - 1);
  STD_TORCH_CHECK(target.size(0) == B && (!dense || target.size(1) == K), "metricseg: target does not fit");
  STD_TORCH_CHECK(K > 0 && std::max({K, h, w, H, W}) < kLargest, "metricseg: a dimension of 2^28 or more, or no class");
  STD_TORCH_CHECK(h * w > 0 || B * H * W == 0, "metricseg: input is empty while target is not");
  const auto on_device = [&](const Optional& t, ScalarType type, const char* name, bool contiguous = true) {
    check_tensor(t, input, type, name, contiguous);
  };
  const ScalarType accumulator = type_of(input) == Type::f64 ? ScalarType::Double : ScalarType::Float;
  on_device(target, target.scalar_type(), "target", false);
  on_device(a.weight, accumulator, "weight");
  on_device(a.keep_above, accumulator, "keep_above");
  on_device(a.grad_loss, accumulator, "grad_loss", false);
  on_device(a.loss, accumulator, "loss");
  on_device(a.totals, ScalarType::Double, "totals");
  on_device(a.argmax, ScalarType::Int, "argmax");
  on_device(a.grad, input.scalar_type(), "grad", false);
  check_shape(a.weight, {K}, "weight");
  check_shape(a.keep_above, {}, "keep_above");
  check_map(a.grad_loss, a, per_class, "grad_loss");
  check_map(a.loss, a, per_class, "loss");
  check_shape(a.totals, {kTotals}, "totals");
  check_shape(a.argmax, {B, H, W}, "argmax");
  check_shape(a.grad, {B, K, h, w}, "grad");
}

template <bool softmax>
void run(const Arguments<Tensor>& a) {
  check(a, !softmax);
  CudaDevice device(a.input);
  a.dispatch([&](auto zero) {
    const auto params = make_params<decltype(zero)>(a);
    softmax ? softmax_focal(device, params) : sigmoid_focal(device, params);
  });
}

void kth_largest_kernel(Tensor values, int64_t k, Tensor result) {
  STD_TORCH_CHECK(k >= 0, "metricseg: k must be >= 0, got ", k);
  STD_TORCH_CHECK(type_of(values) == Type::f64 || type_of(values) == Type::f32,
                  "metricseg: values has the wrong dtype");
  check_tensor(values, values, values.scalar_type(), "values");
  check_tensor(result, values, values.scalar_type(), "result");
  check_shape(result, {}, "result");
  CudaDevice device(values);
  dispatch_accumulator(type_of(values), [&](auto zero) {
    using T = decltype(zero);
    kth_largest(device, data_of<T>(values), values.numel(), k, data_of<T>(result));
  });
}

}  // namespace
}  // namespace metricseg::focal

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using namespace metricseg::focal;
  m.impl("focal_kernel", TORCH_BOX((&focal_kernel<metricseg::Tensor, run<true>>)));
  m.impl("sigmoid_focal_kernel", TORCH_BOX((&sigmoid_focal_kernel<metricseg::Tensor, run<false>>)));
  m.impl("kth_largest_kernel", TORCH_BOX(&kth_largest_kernel));
}
