// The focal family on the CPU: turns the tensors of torch into a Job, gives its shares to the threads of torch, and
// adds the partial sums in order. The loops are in cpu_rows.h and cpu_loss.h, compiled once per vector width.
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <optional>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/simd_choice.h"
#include "../common/host/torch_map.h"
#include "cpu_job.h"

namespace metricseg::focal {
namespace {

const Workers& workers() {
  static const Workers& chosen = METRICSEG_WIDEST;
  return chosen;
}

// The memory behind a Slots.
template <typename T>
struct SlotTable {
  std::vector<int32_t> column, x;
  std::vector<T> neighbor, right;

  SlotTable(const Axis& axis, int64_t lanes) {
    std::vector<int32_t> held(axis.cells, 0);  // labels that a cell has so far
    std::vector<int32_t> center(axis.labels);
    std::vector<int32_t> order(axis.labels);
    const int64_t groups = (axis.cells + lanes - 1) / lanes;
    std::vector<int64_t> depth(groups, 0), first(groups + 1, 0);
    for (int64_t d = 0; d < axis.labels; ++d) {
      const int64_t cell = axis.cell(d);
      center[d] = static_cast<int32_t>(nearest_is_next(axis, d) ? cell + 1 : cell);
      order[d] = held[center[d]]++;
      int64_t& deepest = depth[center[d] / lanes];
      deepest = order[d] < deepest ? deepest : order[d] + 1;
    }
    for (int64_t g = 0; g < groups; ++g) first[g + 1] = first[g] + depth[g];
    const int64_t count = first[groups];
    column.resize(count);
    x.assign(count * lanes, -1);
    neighbor.assign(count * lanes, T(0));
    right.assign(count * lanes, T(-1));
    for (int64_t g = 0; g < groups; ++g) {
      for (int64_t s = first[g]; s < first[g + 1]; ++s) column[s] = static_cast<int32_t>(g * lanes);
    }
    for (int64_t d = 0; d < axis.labels; ++d) {
      const int64_t at = (first[center[d] / lanes] + order[d]) * lanes + center[d] % lanes;
      const T fraction = axis.template fraction<T>(d);
      const bool next = nearest_is_next(axis, d);
      x[at] = static_cast<int32_t>(d);
      // beyond the last cell's center there is nothing to blend with
      neighbor[at] = next ? T(1) - fraction : axis.cell(d) + 1 < axis.cells ? fraction : T(0);
      right[at] = next ? T(0) : T(1);
    }
  }

  // Whether label d is nearer to the right-hand cell of the two that it lies between.
  static bool nearest_is_next(const Axis& axis, int64_t d) {
    return 2 * (axis.numerator(d) % axis.den) >= axis.den && axis.cell(d) + 1 < axis.cells;
  }

  Slots<T> view(bool blend) const {
    return {static_cast<int64_t>(column.size()), blend, column.data(), x.data(), neighbor.data(), right.data()};
  }
};

bool collapses(const Map& map, int64_t w) { return !map || map.y == w * map.x; }

// Without interpolation an image is one long row, if every tensor allows it.
template <typename T>
void collapse(Job<T>& job) {
  if (!job.identity() || job.w == 0) return;
  for (const Map* map : {&job.input, &job.target, &job.grad_loss, &job.loss, &job.argmax, &job.grad}) {
    if (!collapses(*map, job.w)) return;
  }
  job.w = job.W = job.h * job.w;
  job.h = job.H = 1;
}

// For an empty input: B, H or W is 0.
template <typename T>
void clear_gradient(const Job<T>& job, const Optional& grad) {
  if (!grad.has_value() || grad->numel() == 0) return;
  std::memset(grad->mutable_data_ptr(), 0, grad->numel() * job.grad.size);
}

template <typename T>
Partial sum(const Job<T>& job) {
  Partial all{};
  for (int64_t i = 0; i < job.units; ++i) {
    const Partial& p = job.partials[i];
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
Partial execute(Job<T>& job, bool softmax) {
  const int64_t lanes = workers().lanes(T());
  collapse(job);
  const Axis columns = Axis::make(job.w, job.W, job.align_corners);
  job.rows = Axis::make(job.h, job.H, job.align_corners);
  const bool direct = job.identity();
  const SlotTable<T> table = direct ? SlotTable<T>(Axis{}, lanes) : SlotTable<T>(columns, lanes);
  job.slots = table.view(!columns.identity());
  const int64_t tile = job.vectors() * lanes;
  job.units = job.images * job.h * (direct ? (job.w + tile - 1) / tile : 1);
  std::vector<Partial> partials(job.units);
  job.partials = partials.data();
  // a thread pays off from some 30,000 exponentials on
  const int64_t pixels = job.images * job.H * job.W, per_unit = pixels * job.classes / (job.units > 0 ? job.units : 1);
  const Worker<T> worker = workers().worker(softmax, T());
  parallel(job.units, 32768 / (per_unit + 1) + 1, [&](int64_t begin, int64_t end) {
    const auto scratch = aligned_values<T>(job.scratch_values());
    worker(job, begin, end, scratch.get());
  });
  return sum(job);
}

template <typename T>
Job<T> make_job(const Tensor& input, const Tensor& target, const Optional& grad_loss, const Optional& loss,
                const Optional& grad, double gamma, int64_t ignore_index, bool align_corners) {
  Job<T> job{};
  const int64_t rank = target.dim();
  STD_TORCH_CHECK(input.dim() == 4 && (rank == 3 || rank == 4), "metricseg: input [B, K, h, w], target [B, (K,) H, W]");
  STD_TORCH_CHECK(target.size(0) == input.size(0), "metricseg: input and target differ in batch size");
  job.images = input.size(0);
  job.classes = input.size(1);
  job.h = input.size(2);
  job.w = input.size(3);
  job.H = target.size(rank - 2);
  job.W = target.size(rank - 1);
  job.dense = rank == 4;
  job.align_corners = align_corners;
  job.input = map_of(input);
  job.target = map_of(target);
  job.grad_loss = map_of(grad_loss);
  job.loss = map_of(loss);
  job.grad = map_of(grad);
  job.grad_scale = T(1);
  if (grad_loss.has_value() && grad_loss->dim() == 0) {
    job.grad_scale = *static_cast<const T*>(grad_loss->const_data_ptr());
  }
  job.gamma = static_cast<T>(gamma);
  job.ignore_index = ignore_index;
  return job;
}

template <typename T>
void finish(Job<T>& job, bool softmax, const Optional& loss, const Optional& totals, const Optional& grad) {
  const bool empty = job.images == 0 || job.H == 0 || job.W == 0;
  if (empty) clear_gradient(job, grad);
  const Partial all = empty ? Partial{} : execute(job, softmax);
  if (loss.has_value() && loss->dim() == 0) *static_cast<T*>(loss->mutable_data_ptr()) = static_cast<T>(all.loss);
  if (totals.has_value()) {
    const double values[] = {all.valid, all.weight, all.correct, all.bad, all.bad_label};
    std::memcpy(totals->mutable_data_ptr(), values, sizeof values);
  }
}

template <typename T>
void focal(const Tensor& input, const Tensor& target, const Optional& weight, const Optional& keep_above,
           const Optional& grad_loss, double gamma, double label_smoothing, int64_t ignore_index, bool align_corners,
           const Optional& loss, const Optional& totals, const Optional& argmax, const Optional& grad) {
  Job<T> job = make_job<T>(input, target, grad_loss, loss, grad, gamma, ignore_index, align_corners);
  job.argmax = map_of(argmax);
  job.weight = weight.has_value() ? static_cast<const T*>(weight->const_data_ptr()) : nullptr;
  job.keep_above = keep_above.has_value() ? static_cast<const T*>(keep_above->const_data_ptr()) : nullptr;
  T weight_total = static_cast<T>(job.classes);
  if (job.weight != nullptr) {
    weight_total = T(0);
    for (int64_t k = 0; k < job.classes; ++k) weight_total += job.weight[k];
  }
  const T smoothing = static_cast<T>(label_smoothing);
  job.softmax = {job.gamma, smoothing, smoothing / static_cast<T>(job.classes), weight_total};
  finish(job, true, loss, totals, grad);
}

template <typename T>
void sigmoid_focal(const Tensor& input, const Tensor& target, const Optional& grad_loss, double gamma, double alpha,
                   int64_t ignore_index, bool align_corners, const Optional& loss, const Optional& totals,
                   const Optional& grad) {
  Job<T> job = make_job<T>(input, target, grad_loss, loss, grad, gamma, ignore_index, align_corners);
  job.alpha = static_cast<T>(alpha);
  finish(job, false, loss, totals, grad);
}

void focal_kernel(Tensor input, Tensor target, Optional weight, Optional keep_above, Optional grad_loss, double gamma,
                  double label_smoothing, int64_t ignore_index, bool align_corners, Optional loss, Optional totals,
                  Optional argmax, Optional grad) {
  const auto run = is_double(input) ? focal<double> : focal<float>;
  run(input, target, weight, keep_above, grad_loss, gamma, label_smoothing, ignore_index, align_corners, loss, totals,
      argmax, grad);
}

void sigmoid_focal_kernel(Tensor input, Tensor target, Optional grad_loss, double gamma, double alpha,
                          int64_t ignore_index, bool align_corners, Optional loss, Optional totals, Optional grad) {
  const auto run = is_double(input) ? sigmoid_focal<double> : sigmoid_focal<float>;
  run(input, target, grad_loss, gamma, alpha, ignore_index, align_corners, loss, totals, grad);
}

}  // namespace
}  // namespace metricseg::focal

METRICSEG_LIBRARY_IMPL(CPU, m) {
  m.impl("focal_kernel", TORCH_BOX(&metricseg::focal::focal_kernel));
  m.impl("sigmoid_focal_kernel", TORCH_BOX(&metricseg::focal::sigmoid_focal_kernel));
}
