// The ops as functions, and their arguments as tensors, which become Params. Names and order are those of the schemas in
// metricseg_kernels/predict/cpu.py and cuda.py. Tensor is that of torch, or a numpy array in the tests. Include the
// header with its map_of and data_of first: common/host/torch_map.h or tests/support/cuda_host/host.h.
#pragma once

#include <optional>
#include <vector>

#include "../engines/resized/arguments.h"
#include "params.h"

namespace metricseg::predict {

template <typename Tensor>
struct Arguments {
  std::vector<Tensor> maps;
  std::vector<bool> flipped;
  std::vector<double> shares;
  bool align_corners;
  std::optional<Tensor> labels, confidence, entropy, target;
  int64_t ignore_index;
  std::optional<Tensor> counts, bad;

  Params params() const {
    const Tensor& pixels = labels ? *labels : *target;
    const int64_t rank = rank_of(maps[0]);
    Params p{};
    p.batch = size_of(pixels, 0);
    p.depth = rank == 5 ? size_of(pixels, 1) : 1;
    p.height = size_of(pixels, rank - 3);
    p.width = size_of(pixels, rank - 2);
    p.classes = static_cast<int>(size_of(maps[0], 1));
    p.maps = static_cast<int>(maps.size());
    p.labels = resized::map_at_pixels(labels, rank);
    p.confidence = resized::map_at_pixels(confidence, rank);
    p.entropy = resized::map_at_pixels(entropy, rank);
    p.target = resized::map_at_pixels(target, rank);
    p.ignore_index = ignore_index;
    p.counts = data_of<int64_t>(counts);
    p.bad = data_of<double>(bad);
    return p;
  }

  Source source(const Params& p, int index) const {
    const Tensor& map = maps[index];
    const int64_t rank = rank_of(map);
    return {map_of(map),
            Axis::make(rank == 5 ? size_of(map, 2) : 1, p.depth, align_corners),
            Axis::make(size_of(map, rank - 2), p.height, align_corners),
            Axis::make(size_of(map, rank - 1), p.width, align_corners),
            flipped[index],
            shares[index]};
  }

  CudaParams cuda_params() const {
    CudaParams p{};
    static_cast<Params&>(p) = params();
    for (int m = 0; m < p.maps; ++m) {
      p.sources[m] = {map_of(maps[m]), shares[m], static_cast<int>(size_of(maps[m], 2)),
                      static_cast<int>(size_of(maps[m], 3)), flipped[m]};
    }
    p.align_corners = align_corners;
    return p;
  }
};

// For TORCH_BOX and pybind11.
template <typename Tensor, void (*run)(const Arguments<Tensor>&)>
void predict_kernel(std::vector<Tensor> maps, std::vector<bool> flipped, std::vector<double> shares, bool align_corners,
                    Tensor labels, std::optional<Tensor> confidence, std::optional<Tensor> entropy) {
  run({maps, flipped, shares, align_corners, labels, confidence, entropy, {}, 0, {}, {}});
}

template <typename Tensor, void (*run)(const Arguments<Tensor>&)>
void confusion_kernel(std::vector<Tensor> maps, std::vector<bool> flipped, std::vector<double> shares,
                      bool align_corners, Tensor target, int64_t ignore_index, Tensor counts, Tensor bad) {
  run({maps, flipped, shares, align_corners, {}, {}, {}, target, ignore_index, counts, bad});
}

}  // namespace metricseg::predict
