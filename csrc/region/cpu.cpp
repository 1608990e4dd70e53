// The region family on the CPU: turns the tensors of torch into CpuParams, and shares the pixels among the threads of
// torch. Forward: up to 64 shares of an image's units of work, whatever the number of threads, whose sums are added in
// order. Loops: cpu_loops.h and engines/resized/cpu_walk.h, compiled once per vector width.
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

namespace metricseg::region {
namespace {

constexpr int64_t kShares = 64;  // of a batch

template <typename T>
const Loops<T>& loops() {
  static const Loops<T>& chosen = METRICSEG_WIDEST_OF(T);
  return chosen;
}

template <typename T>
Worker<T> worker_of(const CpuParams<T>& params) {
  if (!params.softmax) return loops<T>().sigmoid;
  return params.dense() ? loops<T>().softmax_dense : loops<T>().softmax_labels;
}

template <typename T>
CpuParams<T> make_cpu_params(const Arguments<Tensor>& a) {
  CpuParams<T> params{a.params<T>()};
  T weight_total = static_cast<T>(params.classes);
  if (params.weight != nullptr) {
    weight_total = T(0);
    for (int64_t k = 0; k < params.classes; ++k) weight_total += params.weight[k];
  }
  const T smoothing = params.label_smoothing;
  params.pixel = {params.gamma, smoothing, smoothing / static_cast<T>(params.classes), weight_total};
  return params;
}

// Sums of the shares [B, shares, K kSums + kExtras], added to the outputs in order.
template <typename T>
void add_up(const CpuParams<T>& params, const std::vector<double>& partials, int64_t shares) {
  const int64_t sums = params.classes * kSums, stride = sums + kExtras;
  for (int64_t share = 0; share < params.batch * shares; ++share) {
    const double *const from = partials.data() + share * stride, *const extra = from + sums;
    const int64_t row = params.per_image ? share / shares : 0;
    double* const totals = params.totals + row * kTotals;
    for (int64_t i = 0; i < sums; ++i) params.sums[row * sums + i] += from[i];
    *params.loss += extra[kLoss];
    totals[0] += extra[kValid];
    const bool larger = extra[kBad] > 0 && (totals[1] == 0 || extra[kBadLabel] > totals[2]);
    totals[2] = larger ? extra[kBadLabel] : totals[2];
    totals[1] += extra[kBad];
  }
}

void check(const Arguments<Tensor>& a) {
  const int64_t rank = a.input.dim(), of_target = a.target.dim();
  STD_TORCH_CHECK((rank == 4 || rank == 5) && (of_target == rank - 1 || of_target == rank),
                  "metricseg: input [B, K, (d,) h, w], target [B, (K,) (D,) H, W]");
  STD_TORCH_CHECK(a.target.size(0) == a.input.size(0), "metricseg: input and target differ in batch size");
}

void forward(const Arguments<Tensor>& a) {
  check(a);
  a.dispatch([&](auto zero) {
    using T = decltype(zero);
    CpuParams<T> params = make_cpu_params<T>(a);
    std::fill_n(params.sums, a.sums->numel(), 0.0);
    std::fill_n(params.totals, a.totals->numel(), 0.0);
    *params.loss = 0;
    if (params.pixels() == 0) return;
    const int64_t lanes = loops<T>().lanes;
    const auto table = resized::prepare<T>(params, lanes, a.align_corners, {params.input, params.target});
    const int64_t units = units_per_image(params, lanes);
    const int64_t shares = std::max<int64_t>(1, std::min(units, ceil_div(kShares, params.batch)));
    const int64_t stride = params.classes * kSums + kExtras;
    std::vector<double> partials(params.batch * shares * stride);
    parallel(params.batch * shares, resized::grain(params, params.batch * shares), [&](int64_t begin, int64_t end) {
      const auto scratch = aligned_values<T>(params.scratch_values());
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / shares * units, share = i % shares;
        worker_of(params)(params, image + units * share / shares, image + units * (share + 1) / shares, scratch.get(),
                          partials.data() + i * stride);
      }
    });
    add_up(params, partials, shares);
  });
}

void backward(const Arguments<Tensor>& a) {
  check(a);
  a.dispatch([&](auto zero) {
    using T = decltype(zero);
    CpuParams<T> params = make_cpu_params<T>(a);
    params.grad = fresh_map_of(a.grad);
    if (params.pixels() == 0) {
      if (params.grad) std::memset(params.grad.data, 0, a.grad->numel() * params.grad.size);
      return;
    }
    const int64_t rows = a.grad_sums->numel() / kSums;  // S K
    std::vector<T> hits(rows), mass(rows);
    for (int64_t i = 0; i < rows; ++i) {
      hits[i] = static_cast<T>(params.grad_sums[i * kSums]);
      mass[i] = static_cast<T>(params.grad_sums[i * kSums + 1]);
    }
    params.hit_grad = hits.data();
    params.mass_grad = mass.data();
    params.loss_grad = static_cast<T>(*params.grad_loss);
    const int64_t lanes = loops<T>().lanes;
    const auto table = resized::prepare<T>(params, lanes, a.align_corners, {params.input, params.target, params.grad});
    const int64_t units = params.batch * units_per_image(params, lanes);
    parallel(units, resized::grain(params, units), [&](int64_t begin, int64_t end) {
      const auto scratch = aligned_values<T>(params.scratch_values());
      worker_of(params)(params, begin, end, scratch.get(), nullptr);
    });
  });
}

}  // namespace
}  // namespace metricseg::region

METRICSEG_LIBRARY_IMPL(CPU, m) {
  using namespace metricseg::region;
  m.impl("region_fwd_kernel", TORCH_BOX((&region_fwd_kernel<metricseg::Tensor, forward>)));
  m.impl("region_bwd_kernel", TORCH_BOX((&region_bwd_kernel<metricseg::Tensor, backward>)));
}
