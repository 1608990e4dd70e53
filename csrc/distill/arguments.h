// The op as a function, and its arguments as tensors, which become Params. Names and order are those of the schema in
// metricseg_kernels/distill/op.py. Include the header with map_of and data_of first: common/host/torch_map.h.
#pragma once

#include <optional>

#include "params.h"

namespace metricseg::distill {

template <typename Tensor>
struct Arguments {
  using Optional = std::optional<Tensor>;

  Tensor input, other;
  Optional target, grad_loss;
  int64_t height, width;
  double temperature;
  int64_t kind, ignore_index;
  bool align_corners;
  Optional loss, divisor, grad;

  // f(T()), with T the accumulator type.
  template <typename F>
  void dispatch(const F& f) const {
    dispatch_accumulator(type_of(input), f);
  }

  template <typename T>
  Params<T> params() const {
    const bool reduces = loss && rank_of(*loss) == 0;
    Params<T> p{};
    p.batch = size_of(input, 0);
    p.classes = static_cast<int>(size_of(input, 1));
    p.y = Axis::make(size_of(input, 2), height, align_corners);
    p.x = Axis::make(size_of(input, 3), width, align_corners);
    p.input = map_of(input);
    p.other_y = Axis::make(size_of(other, 2), height, align_corners);
    p.other_x = Axis::make(size_of(other, 3), width, align_corners);
    p.other = map_of(other);
    p.target = map_of(target);
    p.grad_loss = map_of(grad_loss);
    p.temperature = static_cast<T>(temperature);
    p.kind = static_cast<Kind>(kind);
    p.ignore_index = ignore_index;
    if (reduces) p.loss_sum = data_of<T>(loss);
    if (!reduces) p.loss = map_of(loss);
    p.divisor = data_of<T>(divisor);
    p.grad = map_of(grad);
    return p;
  }
};

// For TORCH_BOX and pybind11.
template <typename Tensor, void (*run)(const Arguments<Tensor>&), typename Optional = std::optional<Tensor>>
void distill_kernel(Tensor input, Tensor other, Optional target, Optional grad_loss, int64_t height, int64_t width,
                    double temperature, int64_t kind, int64_t ignore_index, bool align_corners, Optional loss,
                    Optional divisor, Optional grad) {
  run({input, other, target, grad_loss, height, width, temperature, kind, ignore_index, align_corners, loss, divisor,
       grad});
}

}  // namespace metricseg::distill
