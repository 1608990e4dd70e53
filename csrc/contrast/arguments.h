// The ops as functions, and their arguments as tensors, which become ContrastParams. Names and order are those of the
// schemas in metricseg_kernels/contrast/cuda.py. Tensor is that of torch, or a numpy array in the tests. Include the
// header with its map_of and data_of first: common/host/torch_map.h or tests/support/cuda_host/host.h.
#pragma once

#include <optional>

#include "../engines/row_pairs/sort.h"
#include "params.h"

namespace metricseg::contrast {

template <typename Tensor>
struct SideTensors {
  std::optional<Tensor> features, order, groups, ids, weights, factors;

  template <typename T>
  row_pairs::Rows<T> rows() const {
    if (!features) return {};
    return {map_of(features),         size_of(*features, 0), size_of(*features, 1), data_of<int64_t>(order),
            data_of<int32_t>(groups), data_of<int32_t>(ids), data_of<T>(weights),   data_of<T>(factors)};
  }
};

template <typename Tensor>
struct ContrastArguments {
  SideTensors<Tensor> x, y;
  int64_t form;
  double numbers[4];
  bool exact, reduce;
  Tensor terms;  // backward: their gradients
  std::optional<Tensor> counts;
  Tensor stats;
  std::optional<Tensor> grad_x, grad_y;

  template <typename T>
  ContrastParams<T> params() const {
    ContrastParams<T> p{};
    p.x = x.template rows<T>();
    p.y = y.template rows<T>();
    p.form = static_cast<Form>(form);
    std::copy(numbers, numbers + 4, p.numbers);
    p.exact = exact;
    p.reduce = reduce;
    p.terms = data_of<T>(terms);
    p.counts = data_of<T>(counts);
    p.stats = data_of<T>(stats);
    p.grad_x = map_of(grad_x);
    p.grad_y = map_of(grad_y);
    return p;
  }
};

// A side in the caller's order, and where its rows go.
template <typename Tensor>
struct LabelTensors {
  std::optional<Tensor> labels, ids, weights, factors, order, groups, ranked_ids, sorted_weights, sorted_factors;

  template <typename T>
  row_pairs::Labeled<T> side() const {
    if (!labels) return {};
    return {map_of(labels),
            map_of(ids),
            static_cast<int>(size_of(*labels, 0)),
            map_of(weights),
            map_of(factors),
            false,
            data_of<int64_t>(order),
            data_of<int32_t>(groups),
            data_of<int32_t>(ranked_ids),
            data_of<T>(sorted_weights),
            data_of<T>(sorted_factors)};
  }
};

template <typename Tensor>
struct SortArguments {
  LabelTensors<Tensor> x, y;
  int64_t ignore_index;

  // Weights are those of the last side; of two, its rows of weight 0 take no part.
  template <typename T>
  row_pairs::SortParams<T> params() const {
    row_pairs::SortParams<T> p{{x.template side<T>(), y.template side<T>()}, ignore_index};
    p.sides[1].drops = bool(p.sides[1].weights);
    return p;
  }
  Type accumulator() const {
    const auto& values = x.sorted_factors ? x.sorted_factors : x.sorted_weights ? x.sorted_weights : y.sorted_weights;
    return values ? type_of(*values) : Type::f32;
  }
};

template <typename Tensor>
struct MeanArguments {
  Tensor terms, counts;
  std::optional<Tensor> weights;
  bool by_row;
  Tensor loss, totals, divisors;

  template <typename T>
  MeanParams<T> params() const {
    return {data_of<T>(terms),
            data_of<T>(counts),
            map_of(weights),
            size_of(counts, 0),
            static_cast<int>(size_of(counts, 1)),
            by_row,
            data_of<T>(loss),
            data_of<double>(totals),
            data_of<T>(divisors)};
  }
};

template <typename Tensor>
struct SetsArguments {
  Tensor labels, segment_ids, prototype_labels;
  int64_t ignore_index;
  Tensor x, y, ids, places;

  SetsParams params() const {
    return {map_of(labels),          map_of(segment_ids),          map_of(prototype_labels),
            size_of(labels, 0),      size_of(prototype_labels, 0), ignore_index,
            data_of<int32_t>(x),     data_of<int32_t>(y),          data_of<int64_t>(ids),
            data_of<int64_t>(places)};
  }
};

// The ops, for TORCH_BOX and pybind11.
template <typename Tensor, void (*run)(const SetsArguments<Tensor>&)>
void prototype_sets_kernel(Tensor labels, Tensor segment_ids, Tensor prototype_labels, int64_t ignore_index, Tensor x,
                           Tensor y, Tensor ids, Tensor places) {
  run({labels, segment_ids, prototype_labels, ignore_index, x, y, ids, places});
}

template <typename Tensor, void (*run)(const SortArguments<Tensor>&)>
void sort_rows_kernel(Tensor x_labels, std::optional<Tensor> x_ids, std::optional<Tensor> x_weights,
                      std::optional<Tensor> x_factors, std::optional<Tensor> y_labels, std::optional<Tensor> y_ids,
                      std::optional<Tensor> y_weights, int64_t ignore_index, Tensor x_order, Tensor x_groups,
                      std::optional<Tensor> x_ranked_ids, std::optional<Tensor> x_sorted_weights,
                      std::optional<Tensor> x_sorted_factors, std::optional<Tensor> y_order,
                      std::optional<Tensor> y_groups, std::optional<Tensor> y_ranked_ids,
                      std::optional<Tensor> y_sorted_weights) {
  run({{x_labels, x_ids, x_weights, x_factors, x_order, x_groups, x_ranked_ids, x_sorted_weights, x_sorted_factors},
       {y_labels, y_ids, y_weights, {}, y_order, y_groups, y_ranked_ids, y_sorted_weights, {}},
       ignore_index});
}

template <typename Tensor, void (*run)(const MeanArguments<Tensor>&)>
void contrast_mean_kernel(Tensor terms, Tensor counts, std::optional<Tensor> weights, bool by_row, Tensor loss,
                          Tensor totals, Tensor divisors) {
  run({terms, counts, weights, by_row, loss, totals, divisors});
}

template <typename Tensor, void (*run)(const ContrastArguments<Tensor>&)>
void contrast_fwd_kernel(Tensor x, Tensor x_order, Tensor x_groups, std::optional<Tensor> x_ids,
                         std::optional<Tensor> x_weights, std::optional<Tensor> x_factors, std::optional<Tensor> y,
                         std::optional<Tensor> y_order, std::optional<Tensor> y_groups, std::optional<Tensor> y_ids,
                         std::optional<Tensor> y_weights, int64_t form, double a, double b, double c, double d,
                         bool exact, bool reduce, Tensor terms, Tensor counts, Tensor stats) {
  run({{x, x_order, x_groups, x_ids, x_weights, x_factors},
       {y, y_order, y_groups, y_ids, y_weights, {}},
       form,
       {a, b, c, d},
       exact,
       reduce,
       terms,
       counts,
       stats,
       {},
       {}});
}

template <typename Tensor, void (*run)(const ContrastArguments<Tensor>&)>
void contrast_bwd_kernel(Tensor grad_terms, Tensor stats, Tensor x, Tensor x_order, Tensor x_groups,
                         std::optional<Tensor> x_ids, std::optional<Tensor> x_weights, std::optional<Tensor> x_factors,
                         std::optional<Tensor> y, std::optional<Tensor> y_order, std::optional<Tensor> y_groups,
                         std::optional<Tensor> y_ids, std::optional<Tensor> y_weights, int64_t form, double a, double b,
                         double c, double d, bool exact, std::optional<Tensor> grad_x, std::optional<Tensor> grad_y) {
  run({{x, x_order, x_groups, x_ids, x_weights, x_factors},
       {y, y_order, y_groups, y_ids, y_weights, {}},
       form,
       {a, b, c, d},
       exact,
       false,
       grad_terms,
       {},
       stats,
       grad_x,
       grad_y});
}

}  // namespace metricseg::contrast
