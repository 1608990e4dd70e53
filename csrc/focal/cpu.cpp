// The focal family on the CPU: turns the tensors of torch into CpuParams, shares the units of work among the threads of
// torch, and adds the partial sums in order. Loops: cpu_loss.h and engines/resized/cpu_walk.h, compiled once per vector
// width.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/simd_choice.h"
#include "../common/host/torch_map.h"
#include "../engines/resized/cpu_slots.h"
#include "arguments.h"
#include "cpu_params.h"

namespace metricseg::focal {
namespace {

template <typename T>
const Loops<T>& loops() {
  static const Loops<T>& chosen = METRICSEG_WIDEST_OF(T);
  return chosen;
}

Partial sum(const std::vector<Partial>& partials) {
  Partial all{};
  for (const Partial& p : partials) {
    all.bad_label = p.bad > 0 && (all.bad == 0 || p.bad_label > all.bad_label) ? p.bad_label : all.bad_label;
    all.loss += p.loss;
    all.valid += p.valid;
    all.weight += p.weight;
    all.correct += p.correct;
    all.bad += p.bad;
  }
  return all;
}

template <typename T>
Partial execute(CpuParams<T>& params, bool softmax, bool align_corners) {
  const int64_t lanes = loops<T>().lanes;
  const auto table =
      resized::prepare<T>(params, lanes, align_corners,
                          {params.input, params.target, params.grad_loss, params.loss, params.argmax, params.grad});
  const int64_t units = params.batch * units_per_image(params, lanes);
  std::vector<Partial> partials(units);
  params.partials = partials.data();
  // a further thread is faster from some 30,000 exponentials on
  const int64_t per_unit = params.pixels() * params.classes / std::max<int64_t>(units, 1);
  const Worker<T> worker = softmax ? loops<T>().softmax : loops<T>().sigmoid;
  parallel(units, 32768 / (per_unit + 1) + 1, [&](int64_t begin, int64_t end) {
    const auto scratch = aligned_values<T>(params.scratch_values());
    worker(params, begin, end, scratch.get());
  });
  return sum(partials);
}

template <typename T>
CpuParams<T> make_cpu_params(const Arguments<Tensor>& a) {
  CpuParams<T> params{make_params<T>(a)};
  params.grad_scale = T(1);
  if (a.grad_loss && a.grad_loss->dim() == 0) {
    params.grad_scale = *params.grad_loss.template as<const T>();
    params.grad_loss = {};
  }
  T weight_total = static_cast<T>(params.classes);
  if (params.weight != nullptr) {
    weight_total = T(0);
    for (int64_t k = 0; k < params.classes; ++k) weight_total += params.weight[k];
  }
  const T smoothing = params.label_smoothing;
  params.softmax = {params.gamma, smoothing, smoothing / static_cast<T>(params.classes), weight_total};
  return params;
}

template <bool softmax>
void run(const Arguments<Tensor>& a) {
  const int64_t rank = a.input.dim(), of_target = a.target.dim();
  STD_TORCH_CHECK((rank == 4 || rank == 5) && (of_target == rank - 1 || of_target == rank),
                  "metricseg: input [B, K, (d,) h, w], target [B, (K,) (D,) H, W]");
  STD_TORCH_CHECK(a.target.size(0) == a.input.size(0), "metricseg: input and target differ in batch size");
  a.dispatch([&](auto zero) {
    using T = decltype(zero);
    CpuParams<T> params = make_cpu_params<T>(a);
    const bool empty = params.pixels() == 0;
    params.grad = fresh_map_of(a.grad);
    if (empty && params.grad) std::memset(params.grad.data, 0, a.grad->numel() * params.grad.size);
    const Partial all = empty ? Partial{} : execute(params, softmax, a.align_corners);
    const double count = params.by_weight ? all.weight : all.valid;
    const T divisor = params.divisor && count > 0 ? static_cast<T>(count) : T(1);
    if (params.divisor) *params.divisor = divisor;
    if (params.loss_sum) *params.loss_sum = static_cast<T>(all.loss) / divisor;
    const double totals[kTotals] = {all.valid, all.weight, all.correct, all.bad, all.bad_label};
    if (params.totals) std::copy_n(totals, kTotals, params.totals);
  });
}

}  // namespace
}  // namespace metricseg::focal

METRICSEG_LIBRARY_IMPL(CPU, m) {
  using namespace metricseg::focal;
  m.impl("focal_kernel", TORCH_BOX((&focal_kernel<metricseg::Tensor, run<true>>)));
  m.impl("sigmoid_focal_kernel", TORCH_BOX((&sigmoid_focal_kernel<metricseg::Tensor, run<false>>)));
}
