// Logits and a target as Maps. Tensor is that of torch, or a numpy array in the tests. Include the header with its map_of
// first: common/host/torch_map.h or tests/support/cuda_host/host.h.
#pragma once

#include <optional>

#include "maps.h"

namespace metricseg::resized {

// The map of what lies at label pixels, beside logits of `rank` dimensions: [B, H, W] or [B, K, H, W], of volumes
// [B, D, H, W] or [B, K, D, H, W].
template <typename Tensor>
Map map_at_pixels(const std::optional<Tensor>& tensor, int64_t rank) {
  Map map = map_of(tensor);
  if (tensor && rank == 5 && rank_of(*tensor) == 4) {
    map.z = map.k;
    map.k = 0;
  }
  return map;
}

// Logits [B, K, h, w] or [B, K, d, h, w], and their target.
template <typename Tensor>
void set_maps(Maps& p, const Tensor& input, const Tensor& target, bool align_corners) {
  const int64_t rank = rank_of(input), of_target = rank_of(target);
  const auto axis = [&](int64_t from_last) {
    return Axis::make(size_of(input, rank - from_last), size_of(target, of_target - from_last), align_corners);
  };
  p.batch = size_of(input, 0);
  p.classes = static_cast<int>(size_of(input, 1));
  if (rank == 5) p.z = axis(3);
  p.y = axis(2);
  p.x = axis(1);
  p.input = map_of(input);
  p.target = map_at_pixels(std::optional<Tensor>(target), rank);
}

}  // namespace metricseg::resized
