// The ops as functions, and their arguments as tensors, which become Params. Names and order are those of the schemas in
// metricseg_kernels/lovasz/cpu.py. Include the header with map_of and data_of first: common/host/torch_map.h.
#pragma once

#include <optional>

#include "../engines/resized/arguments.h"
#include "params.h"

namespace metricseg::lovasz {

template <typename Tensor>
struct Arguments {
  Tensor input, target;
  int64_t ignore_index;
  bool align_corners;
  std::optional<Tensor> counts, sums, totals, table, grad;

  // f(T()), with T the accumulator type.
  template <typename F>
  void dispatch(const F& f) const {
    dispatch_accumulator(type_of(input), f);
  }

  template <typename T>
  Params<T> params() const {
    Params<T> p{};
    resized::set_maps(p, input, target, align_corners);
    p.ignore_index = ignore_index;
    const Tensor& bins = counts ? *counts : *table;
    p.per_image = size_of(bins, 0) != 1;
    p.bins = static_cast<int>(size_of(bins, 3));
    p.counts = data_of<double>(counts);
    p.sums = data_of<double>(sums);
    p.totals = data_of<double>(totals);
    p.table = data_of<T>(table);
    return p;
  }
};

// For TORCH_BOX.
template <typename Tensor, void (*run)(const Arguments<Tensor>&)>
void lovasz_fwd_kernel(Tensor input, Tensor target, int64_t ignore_index, bool align_corners, Tensor counts,
                       Tensor sums, Tensor totals) {
  run({input, target, ignore_index, align_corners, counts, sums, totals, {}, {}});
}

template <typename Tensor, void (*run)(const Arguments<Tensor>&)>
void lovasz_bwd_kernel(Tensor input, Tensor target, int64_t ignore_index, bool align_corners, Tensor table,
                       Tensor grad) {
  run({input, target, ignore_index, align_corners, {}, {}, {}, table, grad});
}

}  // namespace metricseg::lovasz
