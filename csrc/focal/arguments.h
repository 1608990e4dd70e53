// The ops as functions, and their arguments as tensors, which become Params. Names and order are those of the schemas
// in metricseg_kernels/focal/op.py. Tensor is that of torch, or a numpy array in the tests. Include the header with
// its map_of and data_of first: common/host/torch_map.h or tests/support/cuda_host/host.h.
#pragma once

#include <optional>

#include "../engines/resized/arguments.h"
#include "params.h"

namespace metricseg::focal {

template <typename Tensor>
struct Arguments {
  using Optional = std::optional<Tensor>;

  Tensor input, target;
  Optional weight, keep_above, grad_loss;
  double gamma, label_smoothing, alpha;
  int64_t ignore_index;
  bool align_corners;
  double ignored_loss;
  bool by_weight;
  Optional loss, totals, divisor, argmax, grad;

  // f(T()), with T the accumulator type.
  template <typename F>
  void dispatch(const F& f) const {
    dispatch_accumulator(type_of(input), f);
  }
};

template <typename T, typename Tensor>
Params<T> make_params(const Arguments<Tensor>& a) {
  const bool reduces = a.loss && rank_of(*a.loss) == 0;
  Params<T> p{};
  resized::set_maps(p, a.input, a.target, a.align_corners);
  const int64_t rank = rank_of(a.input);
  p.weight = data_of<T>(a.weight);
  p.keep_above = data_of<T>(a.keep_above);
  p.grad_loss = resized::map_at_pixels(a.grad_loss, rank);
  p.gamma = static_cast<T>(a.gamma);
  p.label_smoothing = static_cast<T>(a.label_smoothing);
  p.alpha = static_cast<T>(a.alpha);
  p.ignore_index = a.ignore_index;
  p.ignored_loss = static_cast<T>(a.ignored_loss);
  if (reduces) p.loss_sum = data_of<T>(a.loss);
  if (!reduces) p.loss = resized::map_at_pixels(a.loss, rank);
  p.totals = data_of<double>(a.totals);
  p.divisor = data_of<T>(a.divisor);
  p.by_weight = a.by_weight;
  p.argmax = resized::map_at_pixels(a.argmax, rank);
  p.grad = map_of(a.grad);
  return p;
}

// The ops, for TORCH_BOX and pybind11.
template <typename Tensor, void (*run)(const Arguments<Tensor>&), typename Optional = std::optional<Tensor>>
void focal_kernel(Tensor input, Tensor target, Optional weight, Optional keep_above, Optional grad_loss, double gamma,
                  double label_smoothing, int64_t ignore_index, bool align_corners, double ignored_loss, bool by_weight,
                  Optional loss, Optional totals, Optional divisor, Optional argmax, Optional grad) {
  run({input, target, weight, keep_above, grad_loss, gamma, label_smoothing, 0, ignore_index, align_corners,
       ignored_loss, by_weight, loss, totals, divisor, argmax, grad});
}

template <typename Tensor, void (*run)(const Arguments<Tensor>&), typename Optional = std::optional<Tensor>>
void sigmoid_focal_kernel(Tensor input, Tensor target, Optional grad_loss, double gamma, double alpha,
                          int64_t ignore_index, bool align_corners, Optional loss, Optional totals, Optional grad) {
  run({input,
       target,
       {},
       {},
       grad_loss,
       gamma,
       0,
       alpha,
       ignore_index,
       align_corners,
       0,
       false,
       loss,
       totals,
       {},
       {},
       grad});
}

}  // namespace metricseg::focal
