// The ops as functions, and their arguments as tensors, which become Params. Names and order are those of the schemas in
// metricseg_kernels/region/cpu.py. Include the header with map_of and data_of first: common/host/torch_map.h.
#pragma once

#include <optional>

#include "../engines/resized/arguments.h"
#include "params.h"

namespace metricseg::region {

template <typename Tensor>
struct Arguments {
  Tensor input, target;
  std::optional<Tensor> weight;
  double gamma, label_smoothing;
  int64_t ignore_index;
  bool align_corners, softmax, pixel_loss;
  std::optional<Tensor> grad_sums, grad_loss, sums, loss, totals, grad;

  // f(T()), with T the accumulator type.
  template <typename F>
  void dispatch(const F& f) const {
    dispatch_accumulator(type_of(input), f);
  }

  template <typename T>
  Params<T> params() const {
    Params<T> p{};
    resized::set_maps(p, input, target, align_corners);
    p.weight = data_of<T>(weight);
    p.gamma = static_cast<T>(gamma);
    p.label_smoothing = static_cast<T>(label_smoothing);
    p.ignore_index = ignore_index;
    p.softmax = softmax;
    p.pixel_loss = pixel_loss;
    p.per_image = size_of(sums ? *sums : *grad_sums, 0) != 1;
    p.sums = data_of<double>(sums);
    p.loss = data_of<double>(loss);
    p.totals = data_of<double>(totals);
    p.grad_sums = data_of<double>(grad_sums);
    p.grad_loss = data_of<double>(grad_loss);
    p.grad = map_of(grad);
    return p;
  }
};

// For TORCH_BOX and pybind11.
template <typename Tensor, void (*run)(const Arguments<Tensor>&)>
void region_fwd_kernel(Tensor input, Tensor target, std::optional<Tensor> weight, double gamma, double label_smoothing,
                       int64_t ignore_index, bool align_corners, bool softmax, bool pixel_loss, Tensor sums,
                       Tensor loss, Tensor totals) {
  run({input,
       target,
       weight,
       gamma,
       label_smoothing,
       ignore_index,
       align_corners,
       softmax,
       pixel_loss,
       {},
       {},
       sums,
       loss,
       totals,
       {}});
}

template <typename Tensor, void (*run)(const Arguments<Tensor>&)>
void region_bwd_kernel(Tensor input, Tensor target, std::optional<Tensor> weight, double gamma, double label_smoothing,
                       int64_t ignore_index, bool align_corners, bool softmax, bool pixel_loss, Tensor grad_sums,
                       Tensor grad_loss, Tensor grad) {
  run({input,
       target,
       weight,
       gamma,
       label_smoothing,
       ignore_index,
       align_corners,
       softmax,
       pixel_loss,
       grad_sums,
       grad_loss,
       {},
       {},
       {},
       grad});
}

}  // namespace metricseg::region
