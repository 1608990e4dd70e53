// Raw kernels of the region family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/region/op.py) has checked the arguments of the user and allocated the outputs. The checks
// here are those that memory safety depends on.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "run.cuh"

namespace metricseg::region {
namespace {

void check(const Arguments<Tensor>& a) {
  constexpr int64_t kLargest = int64_t(1) << 28;
  const Tensor &input = a.input, &target = a.target;
  const bool dense = is_floating(type_of(target));
  STD_TORCH_CHECK(input.dim() == 4 && is_floating(type_of(input)), "metricseg: input must be [B, K, h, w], floating");
  STD_TORCH_CHECK(target.dim() == (dense ? 4 : 3), "metricseg: target has the wrong shape");
  STD_TORCH_CHECK(!a.pixel_loss || (a.softmax && !dense), "metricseg: the pixel loss takes labels and the softmax");
  const int64_t B = input.size(0), K = input.size(1), h = input.size(2), w = input.size(3);
  const int64_t H = target.size(target.dim() - 2), W = target.size(target.dim() - 1);
  STD_TORCH_CHECK(K > 0 && std::max({K, h, w, H, W}) < kLargest, "metricseg: a dimension of 2^28 or more, or no class");
  STD_TORCH_CHECK(K > 1 || !a.softmax, "metricseg: the softmax takes two classes or more");
  STD_TORCH_CHECK(h * w > 0 || B * H * W == 0, "metricseg: input is empty while target is not");
  const int64_t S = (a.sums ? *a.sums : *a.grad_sums).size(0);
  STD_TORCH_CHECK(S == 1 || S == B, "metricseg: there must be sums of each image, or of all");
  check_tensor(target, dense ? std::vector{B, K, H, W} : std::vector{B, H, W}, input, target.scalar_type(), "target",
               false);
  check_tensor(a.weight, {K}, input, accumulator_of(input), "weight");
  check_tensor(a.sums, {S, K, kSums}, input, ScalarType::Double, "sums");
  check_tensor(a.loss, {}, input, ScalarType::Double, "loss");
  check_tensor(a.totals, {S, kTotals}, input, ScalarType::Double, "totals");
  check_tensor(a.grad_sums, {S, K, kSums}, input, ScalarType::Double, "grad_sums");
  check_tensor(a.grad_loss, {}, input, ScalarType::Double, "grad_loss");
  check_tensor(a.grad, {B, K, h, w}, input, input.scalar_type(), "grad", false);
}

template <bool backward>
void run(const Arguments<Tensor>& a) {
  check(a);
  CudaDevice device(a.input);
  a.dispatch([&](auto zero) {
    const auto params = a.params<decltype(zero)>();
    backward ? region_bwd(device, params) : region_fwd(device, params);
  });
}

}  // namespace
}  // namespace metricseg::region

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using namespace metricseg::region;
  m.impl("region_fwd_kernel", TORCH_BOX((&region_fwd_kernel<metricseg::Tensor, run<false>>)));
  m.impl("region_bwd_kernel", TORCH_BOX((&region_bwd_kernel<metricseg::Tensor, run<true>>)));
}
