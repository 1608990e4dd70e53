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
  Map grad_logits;      // [B, K, h, w]
  const T* grad_pull;   // [] or absent
  const T* pull_stats;  // [B, 1 + K], with grad_pull
  Map grad_features;    // [B, C, h, w] or absent
  T* grad_weights;      // [1 or B, K, C] or absent

  int64_t pixels() const { return height * width; }
};

// Means of classes, forward.
template <typename T>
struct MeansParams {
  int64_t batch, classes, channels;
  T least;  // what is added to mass, or divides instead of it
  bool by_mass;
  Map centers;    // [B K C] contiguous, in the type of the features
  T* kept;        // [B, K, C] or absent: the same before rounding
  T* totals;      // [B, K]
  bool* present;  // [B, K]
};

// Their gradient, as far as the sums.
template <typename T>
struct MeansGradParams {
  int64_t batch, classes, channels;
  Map grad;   // [B K C] contiguous, in the type of the features
  Map means;  // [B K C] contiguous, or absent if mass does not divide
  const T* totals;
  T* grad_sums;  // [B, K, C]
  T* grad_mass;  // [B, K]; absent by labels
};

// Members by logits.
template <typename T>
struct SoftParams {
  int64_t batch, channels, height, width, classes;
  Map features;  // [B, C, h, w]
  Map logits;    // [B, K, h, w]
  bool exact;
  Map grad_features;  // [B, C, h, w] or absent
  Map grad_logits;    // [B, K, h, w] or absent

  int64_t pixels() const { return height * width; }
};

enum class Metric { cosine, dot, euclidean };

template <typename T>
struct FoldParams {
  int64_t rows, channels;
  Map centers;  // [rows C] contiguous
  Metric metric;
  T scale, eps;
  T* weights;  // [rows, C]; backward: their gradient
  T* bias;     // [rows] of "euclidean"; backward: its gradient, or absent
  Map grad;    // [rows C] contiguous, backward
};

template <typename T>
struct PullParams {
  int64_t batch, height, width, classes;
  const T* target_similarity;  // [B, h, w]
  Map labels;                  // [B, h, w]
  T scale;
  int64_t ignore_index;
  T* pull;   // []
  T* stats;  // [B, 1 + K]
};

}  // namespace metricseg::centers
