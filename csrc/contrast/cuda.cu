// Raw kernels of the contrast family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/contrast/op.py) has checked the arguments of the user and allocated the outputs.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "dispatch.cuh"

namespace metricseg::contrast {
namespace {

void check(const SideTensors<Tensor>& side, const Tensor& like, const char* name) {
  if (!side.features) return;
  const int64_t N = side.features->size(0);
  STD_TORCH_CHECK(N < int64_t(1) << 30, "metricseg: more than 2^30 rows");
  check_tensor(side.features, {N, like.size(1)}, like, like.scalar_type(), name, false);
  check_tensor(side.order, {N}, like, ScalarType::Long, "order");
  check_tensor(side.groups, {N}, like, ScalarType::Int, "groups");
  check_tensor(side.ids, {N}, like, ScalarType::Int, "ids");
  check_tensor(side.weights, {N}, like, accumulator_of(like), "weights");
  check_tensor(side.factors, {N}, like, accumulator_of(like), "factors");
}

template <bool backward>
void run(const ContrastArguments<Tensor>& a) {
  const Tensor& x = *a.x.features;
  STD_TORCH_CHECK(x.dim() == 2 && is_floating(type_of(x)), "metricseg: floating rows [N, D] are wanted");
  STD_TORCH_CHECK(a.form >= 0 && a.form < 4, "metricseg: an unknown form");
  check(a.x, x, "x");
  check(a.y, x, "y");
  const Form form = static_cast<Form>(a.form);
  const int64_t N = x.size(0), n = form == Form::margin ? 2 : 1, stats = form <= Form::all ? 5 : 4;
  const bool reduced = backward ? a.terms.dim() == 1 : a.reduce;
  check_tensor(a.terms, reduced ? std::vector<int64_t>{n} : std::vector<int64_t>{N, n}, x, accumulator_of(x), "terms");
  check_tensor(a.counts, {N, n}, x, accumulator_of(x), "counts");
  check_tensor(a.stats, {N, stats}, x, accumulator_of(x), "stats");
  check_tensor(a.grad_x, {N, x.size(1)}, x, x.scalar_type(), "grad_x", false);
  if (a.y.features) check_tensor(a.grad_y, {a.y.features->size(0), x.size(1)}, x, x.scalar_type(), "grad_y", false);
  CudaDevice device(x);
  dispatch_accumulator(type_of(x), [&](auto zero) {
    auto p = a.template params<decltype(zero)>();
    p.reduce = reduced;
    dispatch_products(p, [&](auto products) {
      Contrast<decltype(products), CudaDevice> contrast(device, p, backward);
      backward ? contrast.backward() : contrast.forward();
    });
  });
}

}  // namespace
}  // namespace metricseg::contrast

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using metricseg::Tensor;
  namespace contrast = metricseg::contrast;
  m.impl("contrast_fwd_kernel", TORCH_BOX((&contrast::contrast_fwd_kernel<Tensor, contrast::run<false>>)));
  m.impl("contrast_bwd_kernel", TORCH_BOX((&contrast::contrast_bwd_kernel<Tensor, contrast::run<true>>)));
}
