// Raw kernel of the distill family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/distill/op.py) has checked the arguments of the user and allocated the outputs. The checks
// here are those that memory safety depends on.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "run.cuh"

namespace metricseg::distill {
namespace {

void check(const Arguments<Tensor>& a) {
  constexpr int64_t kLargest = int64_t(1) << 28;
  const Tensor &input = a.input, &other = a.other;
  STD_TORCH_CHECK(input.dim() == 4 && is_floating(type_of(input)), "metricseg: input must be [B, K, h, w], floating");
  STD_TORCH_CHECK(other.dim() == 4 && is_floating(type_of(other)), "metricseg: other must be [B, K, h, w], floating");
  STD_TORCH_CHECK((type_of(input) == Type::f64) == (type_of(other) == Type::f64),
                  "metricseg: float64 goes with float64");
  const int64_t B = input.size(0), K = input.size(1), h = input.size(2), w = input.size(3);
  const int64_t h2 = other.size(2), w2 = other.size(3), H = a.height, W = a.width;
  STD_TORCH_CHECK(K > 0 && H >= 0 && W >= 0 && std::max({K, h, w, h2, w2, H, W}) < kLargest,
                  "metricseg: a dimension of 2^28 or more, or no class");
  STD_TORCH_CHECK((h * w > 0 && h2 * w2 > 0) || B * H * W == 0, "metricseg: a map is empty while target is not");
  const ScalarType accumulator = accumulator_of(input);
  const auto map_shape = [&](const Optional& t) -> std::vector<int64_t> {
    return !t || t->dim() == 0 ? std::vector<int64_t>{} : std::vector{B, H, W};
  };
  check_tensor(other, {B, K, h2, w2}, input, other.scalar_type(), "other", false);
  if (a.target) check_tensor(a.target, {B, H, W}, input, a.target->scalar_type(), "target", false);
  check_tensor(a.grad_loss, map_shape(a.grad_loss), input, accumulator, "grad_loss", false);
  check_tensor(a.loss, map_shape(a.loss), input, accumulator, "loss");
  check_tensor(a.divisor, {}, input, accumulator, "divisor");
  check_tensor(a.grad, {B, K, h, w}, input, input.scalar_type(), "grad", false);
}

void run(const Arguments<Tensor>& a) {
  check(a);
  CudaDevice device(a.input);
  a.dispatch([&](auto zero) { distill(device, a.params<decltype(zero)>()); });
}

}  // namespace
}  // namespace metricseg::distill

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using namespace metricseg::distill;
  m.impl("distill_kernel", TORCH_BOX((&distill_kernel<metricseg::Tensor, run>)));
}
