// Raw kernels of the focal family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/focal/op.py) has checked the arguments of the user and allocated the outputs. The checks
// here are those that memory safety depends on.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "run.cuh"

namespace metricseg::focal {
namespace {

void check(const Arguments<Tensor>& a, bool per_class) {
  constexpr int64_t kLargest = int64_t(1) << 28;
  const Tensor &input = a.input, &target = a.target;
  const bool dense = is_floating(type_of(target));
  STD_TORCH_CHECK(input.dim() == 4 && is_floating(type_of(input)), "metricseg: input must be [B, K, h, w], floating");
  STD_TORCH_CHECK(target.dim() == (dense ? 4 : 3), "metricseg: target has the wrong shape");
  STD_TORCH_CHECK(per_class || !dense, "metricseg: target must hold labels");
  const int64_t B = input.size(0), K = input.size(1), h = input.size(2), w = input.size(3);
  const int64_t H = target.size(target.dim() - 2), W = target.size(target.dim() - 1);
  STD_TORCH_CHECK(K > 0 && std::max({K, h, w, H, W}) < kLargest, "metricseg: a dimension of 2^28 or more, or no class");
  STD_TORCH_CHECK(h * w > 0 || B * H * W == 0, "metricseg: input is empty while target is not");
  const ScalarType accumulator = accumulator_of(input), type = input.scalar_type();
  const auto map_shape = [&](const Optional& t) -> std::vector<int64_t> {
    if (!t || t->dim() == 0) return {};
    return per_class ? std::vector{B, K, H, W} : std::vector{B, H, W};
  };
  check_tensor(target, dense ? std::vector{B, K, H, W} : std::vector{B, H, W}, input, target.scalar_type(), "target",
               false);
  check_tensor(a.weight, {K}, input, accumulator, "weight");
  check_tensor(a.keep_above, {}, input, accumulator, "keep_above");
  check_tensor(a.grad_loss, map_shape(a.grad_loss), input, accumulator, "grad_loss", false);
  check_tensor(a.loss, map_shape(a.loss), input, accumulator, "loss");
  check_tensor(a.divisor, {}, input, accumulator, "divisor");
  check_tensor(a.totals, {kTotals}, input, ScalarType::Double, "totals");
  check_tensor(a.argmax, {B, H, W}, input, ScalarType::Int, "argmax");
  check_tensor(a.grad, {B, K, h, w}, input, type, "grad", false);
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

void kth_largest_kernel(Tensor values, int64_t k, double most, Tensor result) {
  STD_TORCH_CHECK(values.is_contiguous() && values.scalar_type() == accumulator_of(values) && k >= 0,
                  "metricseg: kth_largest takes contiguous values in fp32 or fp64, and k >= 0");
  check_tensor(result, {}, values, accumulator_of(values), "result");
  CudaDevice device(values);
  dispatch_accumulator(type_of(values), [&](auto zero) {
    using T = decltype(zero);
    kth_largest(device, data_of<T>(values), values.numel(), k, static_cast<T>(most), data_of<T>(result));
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
