// The lovasz family on the CPU: turns the tensors of torch into CpuParams, and shares the pixels among the threads of
// torch. Forward: a thread has bins of its own, which are integers and added up at its end, so that no number of threads
// changes a bit. Loops: cpu_loops.h and engines/resized/cpu_walk.h, compiled once per vector width.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/simd_choice.h"
#include "../common/host/torch_map.h"
#include "../engines/resized/cpu_slots.h"
#include "arguments.h"
#include "cpu_params.h"

namespace metricseg::lovasz {
namespace {

template <typename T>
const Loops<T>& loops() {
  static const Loops<T>& chosen = METRICSEG_WIDEST_OF(T);
  return chosen;
}

void check(const Arguments<Tensor>& a) {
  STD_TORCH_CHECK(a.input.dim() == 4 && a.target.dim() == 3, "metricseg: input [B, K, h, w], target [B, H, W]");
  STD_TORCH_CHECK(a.target.size(0) == a.input.size(0), "metricseg: input and target differ in batch size");
}

// Bins and totals of the sets [S], to which threads add theirs.
struct Sets {
  std::mutex mutex;
  std::vector<Bin> bins;
  double* totals;

  void add(int64_t set, std::vector<Bin>& found, double (&counted)[kTotals]) {
    const std::lock_guard<std::mutex> lock(mutex);
    Bin* const own = bins.data() + set * static_cast<int64_t>(found.size());
    for (size_t i = 0; i < found.size(); ++i) {
      own[i].count += found[i].count;
      own[i].rest += found[i].rest;
    }
    double* const total = totals + set * kTotals;
    const bool larger = counted[kBad] > 0 && (total[kBad] == 0 || counted[kBadLabel] > total[kBadLabel]);
    total[kBadLabel] = larger ? counted[kBadLabel] : total[kBadLabel];
    for (int i : {kValid, kBad, kUndefined}) total[i] += counted[i];
    std::fill(found.begin(), found.end(), Bin{});
    std::fill_n(counted, int{kTotals}, 0.0);
  }
};

void forward(const Arguments<Tensor>& a) {
  check(a);
  a.dispatch([&](auto zero) {
    using T = decltype(zero);
    CpuParams<T> params{a.params<T>()};
    const int64_t of_image = params.image_bins(), all = a.counts->numel(), lanes = loops<T>().lanes;
    int bits = 1;
    while (params.pixels() >> bits) ++bits;
    params.one = std::ldexp(1.0, std::min(40, 61 - bits));
    std::fill_n(params.totals, a.totals->numel(), 0.0);
    Sets sets{{}, std::vector<Bin>(all), params.totals};
    if (params.pixels() > 0) {
      const auto table = resized::prepare<T>(params, lanes, a.align_corners, {params.input, params.target});
      const int64_t units = units_per_image(params, lanes), total = params.batch * units;
      parallel(total, resized::grain(params, total), [&](int64_t begin, int64_t end) {
        const auto scratch = aligned_values<T>(params.scratch_values());
        std::vector<Bin> bins(of_image);
        double counted[kTotals] = {};
        while (begin < end) {
          const int64_t image = begin / units, next = std::min(end, params.per_image ? (image + 1) * units : end);
          loops<T>().run(params, begin, next, scratch.get(), bins.data(), counted);
          sets.add(params.per_image ? image : 0, bins, counted);
          begin = next;
        }
      });
    }
    for (int64_t i = 0; i < all; ++i) {
      const double count = static_cast<double>(sets.bins[i].count), rest = static_cast<double>(sets.bins[i].rest);
      params.counts[i] = count;
      params.sums[i] = (count * static_cast<double>(i % params.bins) + rest / params.one) / params.bins;
    }
  });
}

void backward(const Arguments<Tensor>& a) {
  check(a);
  a.dispatch([&](auto zero) {
    using T = decltype(zero);
    CpuParams<T> params{a.params<T>()};
    params.grad = fresh_map_of(a.grad);
    if (params.pixels() == 0) {
      if (params.grad) std::memset(params.grad.data, 0, a.grad->numel() * params.grad.size);
      return;
    }
    const int64_t lanes = loops<T>().lanes;
    const auto table = resized::prepare<T>(params, lanes, a.align_corners, {params.input, params.target, params.grad});
    const int64_t units = params.batch * units_per_image(params, lanes);
    parallel(units, resized::grain(params, units), [&](int64_t begin, int64_t end) {
      const auto scratch = aligned_values<T>(params.scratch_values());
      loops<T>().run(params, begin, end, scratch.get(), nullptr, nullptr);
    });
  });
}

}  // namespace
}  // namespace metricseg::lovasz

METRICSEG_LIBRARY_IMPL(CPU, m) {
  using namespace metricseg::lovasz;
  m.impl("lovasz_fwd_kernel", TORCH_BOX((&lovasz_fwd_kernel<metricseg::Tensor, forward>)));
  m.impl("lovasz_bwd_kernel", TORCH_BOX((&lovasz_bwd_kernel<metricseg::Tensor, backward>)));
}
