// The ops as functions, and their arguments as tensors, which become Params. Names and order are those of the schemas
// in metricseg_kernels/segments/cpu.py and cuda.py. Tensor is that of torch, or a numpy array in the tests. Include the
// header with its map_of and data_of first: common/host/torch_map.h or tests/support/cuda_host/host.h.
#pragma once

#include <algorithm>
#include <optional>

#include "../engines/pixel_rows/label_sums.cuh"
#include "params.h"

namespace metricseg::segments {

template <typename Tensor>
struct KmeansArguments {
  Tensor embeddings;
  std::optional<Tensor> location, valid, init;
  int64_t rows, columns, iterations;
  bool coordinated, align_corners;
  double eps;
  Tensor ids;

  template <typename T>
  KmeansParams<T> params() const {
    KmeansParams<T> p{};
    const int64_t H = size_of(ids, 1), W = size_of(ids, 2);
    p.batch = size_of(ids, 0);
    p.channels = static_cast<int>(size_of(embeddings, 1));
    p.clusters = static_cast<int>(rows * columns);
    p.y = Axis::make(size_of(embeddings, 2), H, align_corners);
    p.x = Axis::make(size_of(embeddings, 3), W, align_corners);
    p.block_rows = static_cast<int>(std::max<int64_t>(ceil_div(H, rows), 1));
    p.block_columns = static_cast<int>(std::max<int64_t>(ceil_div(W, columns), 1));
    p.grid_columns = static_cast<int>(columns);
    p.coordinated = coordinated;
    p.eps = static_cast<T>(eps);
    p.embeddings = map_of(embeddings);
    p.location = map_of(location);
    p.valid = map_of(valid);
    p.init = map_of(init);
    p.ids = data_of<int64_t>(ids);
    return p;
  }
};

template <typename Tensor>
struct SplitArguments {
  Tensor ids, labels;
  int64_t num_classes, ignore_index;
  Tensor dense, found, count;

  SplitParams params() const {
    SplitParams p{};
    p.ids = map_of(ids);
    p.labels = map_of(labels);
    p.batch = size_of(ids, 0);
    p.height = size_of(ids, 1);
    p.width = size_of(ids, 2);
    p.num_classes = num_classes;
    p.ignore_index = ignore_index;
    p.capacity = size_of(found, 0);
    p.dense = data_of<int64_t>(dense);
    p.found = data_of<int64_t>(found);
    p.count = data_of<int64_t>(count);
    return p;
  }
};

template <typename Tensor>
struct SumsArguments {
  Tensor x, ids;  // backward: x is its gradient
  Tensor sums;    // backward: their gradient
  std::optional<Tensor> mass;

  template <typename T>
  LabelSumsParams<T> params() const {
    LabelSumsParams<T> p{};
    p.features = map_of(x);
    p.labels = map_of(ids);
    p.batch = size_of(x, 0);
    p.channels = size_of(x, 1);
    p.height = size_of(x, 2);
    p.width = size_of(x, 3);
    p.classes = p.of_image = size_of(sums, 0);
    p.ignore_index = kIgnored;
    p.sums = data_of<T>(sums);
    p.sums_row = map_of(sums).y;
    p.sums_column = map_of(sums).x;
    p.mass = data_of<T>(mass);
    return p;
  }
};

// The ops, for TORCH_BOX and pybind11.
template <typename Tensor, void (*run)(const KmeansArguments<Tensor>&)>
void kmeans_kernel(Tensor embeddings, std::optional<Tensor> location, std::optional<Tensor> valid,
                   std::optional<Tensor> init, int64_t rows, int64_t columns, int64_t iterations, bool coordinated,
                   bool align_corners, double eps, Tensor ids) {
  run({embeddings, location, valid, init, rows, columns, iterations, coordinated, align_corners, eps, ids});
}

template <typename Tensor, void (*run)(const SplitArguments<Tensor>&)>
void split_by_label_kernel(Tensor ids, Tensor labels, int64_t num_classes, int64_t ignore_index, Tensor dense,
                           Tensor found, Tensor count) {
  run({ids, labels, num_classes, ignore_index, dense, found, count});
}

template <typename Tensor, void (*run)(const SumsArguments<Tensor>&)>
void segment_sums_fwd_kernel(Tensor x, Tensor ids, Tensor sums, Tensor mass) {
  run({x, ids, sums, mass});
}

template <typename Tensor, void (*run)(const SumsArguments<Tensor>&)>
void segment_sums_bwd_kernel(Tensor grad_sums, Tensor ids, Tensor grad) {
  run({grad, ids, grad_sums, {}});
}

}  // namespace metricseg::segments
