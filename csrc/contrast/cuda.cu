// Raw kernels of the contrast family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/contrast/op.py) has checked the arguments of the user and allocated the outputs.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "dispatch.cuh"
#include "sets.cuh"

namespace metricseg::contrast {

// products_*.cu
extern template void launch<Exact<double>>(CudaDevice&, const ContrastParams<double>&, bool);
extern template void launch<Exact<float>>(CudaDevice&, const ContrastParams<float>&, bool);
extern template void launch<Tf32<false>>(CudaDevice&, const ContrastParams<float>&, bool);
extern template void launch<Half<__nv_bfloat16>>(CudaDevice&, const ContrastParams<float>&, bool);
extern template void launch<Half<__half>>(CudaDevice&, const ContrastParams<float>&, bool);

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
    dispatch_products(p, [&](auto products) { launch<decltype(products)>(device, p, backward); });
  });
}

void check(const LabelTensors<Tensor>& side, const Tensor& like, ScalarType accumulator) {
  if (!side.labels) return;
  const int64_t N = side.labels->size(0);
  STD_TORCH_CHECK(N < int64_t(1) << 20, "metricseg: too many rows for a sort by comparison");
  check_tensor(side.labels, {N}, like, side.labels->scalar_type(), "labels", false);
  if (side.ids) check_tensor(side.ids, {N}, like, side.ids->scalar_type(), "ids", false);
  if (side.weights) check_tensor(side.weights, {N}, like, side.weights->scalar_type(), "weights", false);
  if (side.factors) check_tensor(side.factors, {N}, like, side.factors->scalar_type(), "factors", false);
  check_tensor(side.order, {N}, like, ScalarType::Long, "order");
  check_tensor(side.groups, {N}, like, ScalarType::Int, "groups");
  check_tensor(side.ranked_ids, {N}, like, ScalarType::Int, "ranked_ids");
  check_tensor(side.sorted_weights, {N}, like, accumulator, "sorted_weights");
  check_tensor(side.sorted_factors, {N}, like, accumulator, "sorted_factors");
}

void run_sort(const SortArguments<Tensor>& a) {
  const Tensor& like = *a.x.labels;
  const Type type = a.accumulator();
  for (const auto* side : {&a.x, &a.y}) check(*side, like, type == Type::f64 ? ScalarType::Double : ScalarType::Float);
  CudaDevice device(like);
  dispatch_accumulator(type, [&](auto zero) { sort_rows(device, a.template params<decltype(zero)>()); });
}

void run_sets(const SetsArguments<Tensor>& a) {
  const Tensor& labels = a.labels;
  STD_TORCH_CHECK(labels.dim() == 1 && a.prototype_labels.dim() == 1, "metricseg: labels [N] and [P] are wanted");
  const int64_t N = labels.size(0), P = a.prototype_labels.size(0);
  check_tensor(a.segment_ids, {N}, labels, a.segment_ids.scalar_type(), "segment_ids", false);
  check_tensor(a.prototype_labels, {P}, labels, a.prototype_labels.scalar_type(), "prototype_labels", false);
  check_tensor(a.x, {N}, labels, ScalarType::Int, "x");
  check_tensor(a.y, {P}, labels, ScalarType::Int, "y");
  check_tensor(a.ids, {N}, labels, ScalarType::Long, "ids");
  check_tensor(a.places, {P}, labels, ScalarType::Long, "places");
  CudaDevice device(labels);
  mark_sets(device, a.params());
}

void run_mean(const MeanArguments<Tensor>& a) {
  const Tensor &terms = a.terms, &counts = a.counts;
  STD_TORCH_CHECK(counts.dim() == 2, "metricseg: counts [A, n] are wanted");
  const int64_t A = counts.size(0), n = counts.size(1);
  const ScalarType type = accumulator_of(terms);
  check_tensor(terms, {n}, terms, type, "terms");
  check_tensor(counts, {A, n}, terms, type, "counts");
  if (a.weights) check_tensor(a.weights, {A}, terms, a.weights->scalar_type(), "weights", false);
  check_tensor(a.loss, {}, terms, type, "loss");
  check_tensor(a.totals, {n}, terms, ScalarType::Double, "totals");
  check_tensor(a.divisors, {n}, terms, type, "divisors");
  CudaDevice device(terms);
  dispatch_accumulator(type_of(terms), [&](auto zero) { mean(device, a.template params<decltype(zero)>()); });
}

}  // namespace
}  // namespace metricseg::contrast

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using metricseg::Tensor;
  namespace contrast = metricseg::contrast;
  m.impl("contrast_fwd_kernel", TORCH_BOX((&contrast::contrast_fwd_kernel<Tensor, contrast::run<false>>)));
  m.impl("contrast_bwd_kernel", TORCH_BOX((&contrast::contrast_bwd_kernel<Tensor, contrast::run<true>>)));
  m.impl("prototype_sets_kernel", TORCH_BOX((&contrast::prototype_sets_kernel<Tensor, contrast::run_sets>)));
  m.impl("sort_rows_kernel", TORCH_BOX((&contrast::sort_rows_kernel<Tensor, contrast::run_sort>)));
  m.impl("contrast_mean_kernel", TORCH_BOX((&contrast::contrast_mean_kernel<Tensor, contrast::run_mean>)));
}
