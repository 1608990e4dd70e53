// Raw kernels of the refine family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/refine/op.py) has checked the arguments of the user and allocated the outputs.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "run.cuh"

namespace metricseg::refine {
namespace {

constexpr int64_t kMost = int64_t(1) << 31;

template <bool backward>
void run(const RefineArguments<Tensor>& a) {
  const Tensor &x = a.features, &o = a.offsets;
  STD_TORCH_CHECK(x.dim() == 4 && is_floating(type_of(x)) && o.dim() == 4 && is_floating(type_of(o)),
                  "metricseg: floating features [B, C, h, w] and offsets [B, 2, H, W] are wanted");
  const int64_t B = x.size(0), C = x.size(1), h = x.size(2), w = x.size(3), H = o.size(2), W = o.size(3);
  STD_TORCH_CHECK(accumulator_of(x) == accumulator_of(o), "metricseg: offsets have the wrong dtype");
  STD_TORCH_CHECK(H * W < kMost && h <= H && w <= W && (h * w > 0 || H * W == 0),
                  "metricseg: 2^31 pixels of an image, or fewer than it has cells, or no cell");
  check_tensor(o, {B, 2, H, W}, x, o.scalar_type(), "offsets", false);
  check_tensor(a.neighbor_logits, {B, 9, H, W}, x, o.scalar_type(), "neighbor_logits", false);
  check_tensor(a.output, {B, C, H, W}, x, x.scalar_type(), "output", false);
  check_tensor(a.grad_features, {B, C, h, w}, x, x.scalar_type(), "grad_features", false);
  check_tensor(a.grad_offsets, {B, 2, H, W}, x, o.scalar_type(), "grad_offsets", false);
  check_tensor(a.grad_neighbor_logits, {B, 9, H, W}, x, o.scalar_type(), "grad_neighbor_logits", false);
  CudaDevice device(x);
  dispatch_accumulator(type_of(x), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? refine_bwd(device, params) : refine_fwd(device, params);
  });
}

}  // namespace
}  // namespace metricseg::refine

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using metricseg::Tensor;
  namespace refine = metricseg::refine;
  m.impl("refine_fwd_kernel", TORCH_BOX((&refine::refine_fwd_kernel<Tensor, refine::run<false>>)));
  m.impl("refine_bwd_kernel", TORCH_BOX((&refine::refine_bwd_kernel<Tensor, refine::run<true>>)));
}
