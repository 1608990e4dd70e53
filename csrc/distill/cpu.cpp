// The distill family on the CPU: turns the tensors of torch into CpuParams, shares the units of work among the threads
// of torch, and adds the partial sums in order. Loops: cpu_loops.h, cpu_other.h and engines/resized/cpu_walk.h, compiled
// once per vector width.
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

namespace metricseg::distill {
namespace {

template <typename T>
const Loops<T>& loops() {
  static const Loops<T>& chosen = METRICSEG_WIDEST_OF(T);
  return chosen;
}

template <typename T>
Worker<T> worker_of(Kind kind) {
  return kind == Kind::kl ? loops<T>().kl : kind == Kind::reverse_kl ? loops<T>().reverse_kl : loops<T>().js;
}

// The memory behind Columns. Weights are those of a slot: the nearest cell, and one neighbor of it.
template <typename T>
struct ColumnTable {
  std::vector<int64_t> first;
  std::vector<Index<T>> center, neighbor;
  std::vector<T> side;
  bool near = true;

  // labels: of `lanes` label columns for each vector, -1 for an idle lane.
  ColumnTable(const Axis& axis, const std::vector<int32_t>& labels, int64_t lanes)
      : center(labels.size(), 0), neighbor(labels.size(), 0), side(labels.size(), T(0)) {
    for (size_t begin = 0; begin < labels.size(); begin += lanes) {
      int64_t lowest = axis.cells, highest = 0;
      for (size_t i = begin; i < begin + lanes; ++i) {
        if (labels[i] < 0) continue;
        const int64_t cell = axis.cell(labels[i]), next = axis.next(cell);
        const bool swap = resized::SlotTable<T>::nearest_is_next(axis, labels[i]);
        const T fraction = axis.template fraction<T>(labels[i]);
        center[i] = static_cast<Index<T>>(swap ? next : cell);
        neighbor[i] = static_cast<Index<T>>(swap ? cell : next);
        side[i] = swap ? T(1) - fraction : next > cell ? fraction : T(0);
        lowest = std::min(lowest, cell);
        highest = std::max(highest, next);
      }
      first.push_back(std::min(lowest, axis.cells - 1));
      near = near && highest - lowest < 2 * lanes;
      for (size_t i = begin; i < begin + lanes; ++i) {
        if (labels[i] < 0) continue;
        center[i] -= static_cast<Index<T>>(lowest);
        neighbor[i] -= static_cast<Index<T>>(lowest);
      }
    }
  }

  Columns<T> view(bool blend) const { return {first.data(), center.data(), neighbor.data(), side.data(), blend, near}; }
};

// Label columns of the vectors that the walk makes: its slots, or consecutive ones.
template <typename T>
std::vector<int32_t> columns_of(const CpuParams<T>& params, int64_t lanes) {
  if (!params.identity()) return {params.slots.x, params.slots.x + params.slots.count * lanes};
  std::vector<int32_t> columns(ceil_div(params.x.labels, lanes) * lanes, -1);
  for (int64_t x = 0; x < params.x.labels; ++x) columns[x] = static_cast<int32_t>(x);
  return columns;
}

template <typename T>
Partial execute(CpuParams<T>& params, bool align_corners) {
  const int64_t lanes = loops<T>().lanes;
  const bool copies = params.copies();
  const auto slots =
      copies
          ? resized::prepare<T>(params, lanes, align_corners,
                                {params.input, params.other, params.target, params.grad_loss, params.loss, params.grad})
          : resized::prepare<T>(params, lanes, align_corners, {});
  if (copies) {
    params.other_y = params.y;
    params.other_x = params.x;
  }
  params.same_slots = !params.identity() && params.x.cells == params.other_x.cells;
  const bool free_columns = !copies && !params.same_slots;
  const ColumnTable<T> columns(params.other_x, free_columns ? columns_of(params, lanes) : std::vector<int32_t>(),
                               lanes);
  params.columns = columns.view(!params.other_x.identity());
  const int64_t units = params.batch * units_per_image(params, lanes);
  std::vector<Partial> partials(units);
  params.partials = partials.data();
  // a further thread is faster from some 30,000 exponentials on
  const int64_t per_unit = 2 * params.pixels() * params.classes / std::max<int64_t>(units, 1);
  parallel(units, 32768 / (per_unit + 1) + 1, [&](int64_t begin, int64_t end) {
    const auto scratch = aligned_values<T>(params.scratch_values());
    worker_of<T>(params.kind)(params, begin, end, scratch.get());
  });
  Partial all{0, 0};
  for (const Partial& p : partials) {
    all.loss += p.loss;
    all.valid += p.valid;
  }
  return all;
}

void check(const Arguments<Tensor>& a) {
  STD_TORCH_CHECK(a.input.dim() == 4 && a.other.dim() == 4, "metricseg: input and other [B, K, h, w]");
  STD_TORCH_CHECK(a.input.size(0) == a.other.size(0) && a.input.size(1) == a.other.size(1),
                  "metricseg: input and other differ in batch size or classes");
  STD_TORCH_CHECK((type_of(a.input) == Type::f64) == (type_of(a.other) == Type::f64),
                  "metricseg: float64 goes with float64");
  const bool fits = !a.target || (a.target->dim() == 3 && a.target->size(0) == a.input.size(0) &&
                                  a.target->size(1) == a.height && a.target->size(2) == a.width);
  STD_TORCH_CHECK(fits, "metricseg: target [B, H, W]");
}

void run(const Arguments<Tensor>& a) {
  check(a);
  a.dispatch([&](auto zero) {
    using T = decltype(zero);
    CpuParams<T> params{a.params<T>()};
    params.grad_scale = T(1);
    if (a.grad_loss && a.grad_loss->dim() == 0) {
      params.grad_scale = *params.grad_loss.template as<const T>();
      params.grad_loss = {};
    }
    const bool empty = params.pixels() == 0;
    params.grad = fresh_map_of(a.grad);
    if (empty && params.grad) std::memset(params.grad.data, 0, a.grad->numel() * params.grad.size);
    const Partial all = empty ? Partial{0, 0} : execute(params, a.align_corners);
    const T divisor = params.divisor ? static_cast<T>(std::max(all.valid, 1.0)) : T(1);
    if (params.divisor) *params.divisor = divisor;
    if (params.loss_sum) *params.loss_sum = static_cast<T>(all.loss) / divisor;
  });
}

}  // namespace
}  // namespace metricseg::distill

METRICSEG_LIBRARY_IMPL(CPU, m) {
  using namespace metricseg::distill;
  m.impl("distill_kernel", TORCH_BOX((&distill_kernel<metricseg::Tensor, run>)));
}
