// Arguments of the centers kernels on CUDA as plain data, the same for CUDA and the tests. Names are those of the
// contract in docs/kernels/centers.md.
#pragma once

#include "../common/tensor_map.h"

namespace metricseg::centers {

template <typename T>
struct SimilarityParams {
  int64_t batch, channels, height, width, classes;
  Map features;           // [B, C, h, w]
  const T* weights;       // [1 or B, K, C]
  int64_t weight_images;  // 1 or B
  Map labels;             // [B, h, w] or absent
  int64_t ignore_index;
  bool cosine;
  T square;              // factor of |x|^2 in "euclidean", else 0
  T eps;                 // least norm
  bool exact;            // fp32 products of fp32 features, not tf32
  Map logits;            // [B, K, h, w]; backward: absent if not "cosine"
  T* target_similarity;  // [B, h, w] or absent
  T* norms;              // [B, h, w], "cosine" only
  // forward
  const T* bias;        // [1 or B, K] or absent
  int64_t bias_images;  // 1 or B
  // backward
  Map grad_logits;             // [B, K, h, w]
  Map grad_target_similarity;  // [B, h, w] or absent
  Map grad_features;           // [B, C, h, w] or absent
  T* grad_weights;             // [1 or B, K, C] or absent

  int64_t pixels() const { return height * width; }
};

template <typename T>
struct SoftSumsParams {
  int64_t batch, channels, height, width, classes;
  Map features;  // [B, C, h, w]
  Map logits;    // [B, K, h, w]
  bool exact;
  T* sums;            // [B, K, C]; backward: their gradient
  T* mass;            // [B, K]; backward: their gradient
  Map grad_features;  // [B, C, h, w] or absent
  Map grad_logits;    // [B, K, h, w] or absent

  int64_t pixels() const { return height * width; }
};

}  // namespace metricseg::centers
