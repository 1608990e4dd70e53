// Kernels of the region family on CUDA.
//
// walk_kernel    one block of 128 threads per tile of cells (engines/resized/walk.cuh). Forward: sums of the tile, one
//                row of partial. Backward: gradient of the logits. Registers of a thread: 4 KT values, and I, Y in shared
//                memory; backward 5 KT.
// stats_kernel   one thread per pixel, for more classes than a warp holds: writes the statistics of the softmax for
//                walk_kernel, whose blocks then take a span of classes each.
// finish_kernel  partial sums -> sums, loss and totals, in fixed order; a block takes 16 of them.
#pragma once

#include "forms.cuh"

namespace metricseg::region {

template <typename T, int KT, bool Grad, template <typename, int, bool> class Form>
__global__ void __launch_bounds__(kThreads, resident_blocks<T>(KT, Grad))
    walk_kernel(const CudaParams<T> p, const LaunchConfig config) {
  __shared__ BadLabels bad;
  Form<T, KT, Grad> form(p, config, bad);
  if (threadIdx.x == 0) bad = kNoBadLabels;
  form.begin();
  walk_tile<T, KT, Grad>(p, config, form);
  if constexpr (!Grad) form.write_partial();
}

// The statistics of a pixel that takes part. label: the class that rest and dot leave out, or -1.
template <typename T, bool Grad>
__device__ __forceinline__ PixelStats<T> stats_of(const CudaParams<T>& p, int64_t image, int64_t y, int64_t x,
                                                  int label) {
  const Sampler<T, CudaParams<T>> logit(p, image, y, x);
  const bool dense = p.dense();
  PixelStats<T> stats{-std::numeric_limits<T>::infinity(), 0, 0, 0, 0};
  with_storage<T>(p.input, [&](auto* input) {
#pragma unroll 4
    for (int k = 0; k < p.classes; ++k) stats.max = fmax(stats.max, logit(input, k));
    if (label >= 0) stats.gap = stats.max - logit(input, label);
#pragma unroll 4
    for (int k = 0; k < p.classes; ++k) {
      if (k == label) continue;
      const T e = exp_nonpositive(logit(input, k) - stats.max);
      stats.rest += e;
      if constexpr (Grad) {
        const double* grad = p.class_grad(image, k);
        T of_class = static_cast<T>(grad[1]);
        if (dense) of_class += static_cast<T>(grad[0]) * soft_target(p, image, k, y, x);
        stats.dot += e * of_class;
      }
    }
    if (!p.pixel_loss || p.label_smoothing == T(0)) return;
    for (int k = 0; k < p.classes; ++k) stats.weighted_gap += class_weight(p, k) * (stats.max - logit(input, k));
  });
  return stats;
}

template <typename T, bool Grad>
__global__ void __launch_bounds__(kThreads, 2) stats_kernel(const CudaParams<T> p) {
  const int64_t pixels = p.pixels();
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < pixels;
       i += gridDim.x * static_cast<int64_t>(blockDim.x)) {
    const int64_t x = i % p.x.labels, y = i / p.x.labels % p.y.labels, image = i / p.x.labels / p.y.labels;
    const int64_t offset = p.target.offset(image, 0, y, x);
    const int label = p.dense() ? fetch_soft(p, offset) : fetch_label(p, offset);
    if (label >= 0) p.stats[i] = stats_of<T, Grad>(p, image, y, x, p.dense() ? -1 : label);
  }
}

// The partial sums of a call, and their layout.
struct Partials {
  const double* data;   // [B, class_chunks, tiles, span kSums + kExtras]
  int64_t batch, rows;  // rows: S
  int classes, span, class_chunks;
  int64_t tiles;  // of an image and a span of classes
  double *sums, *loss, *totals;

  // Numbers of a row of the output: I, P, Y of each class, then the totals.
  METRICSEG_HD int numbers() const { return classes * kSums + kTotals; }
};

constexpr int kNumbers = 16, kShares = 32;  // of a block of finish_kernel: outputs, and shares of the tiles

// Grid: S ceil(numbers / 16) blocks, and one for the loss.
__global__ void __launch_bounds__(kNumbers* kShares) finish_kernel(const Partials p) {
  __shared__ double parts[kShares][kNumbers];
  const int lane = threadIdx.x % kNumbers, share = threadIdx.x / kNumbers;
  const int64_t row_blocks = ceil_div(p.numbers(), kNumbers), row = blockIdx.x / row_blocks;
  const bool of_loss = row == p.rows;
  const int number = of_loss ? lane : static_cast<int>(blockIdx.x % row_blocks) * kNumbers + lane;
  const int extra = of_loss ? kLoss : number - p.classes * kSums + kValid;
  const bool of_class = !of_loss && number < p.classes * kSums, largest = !of_class && extra == kBadLabel;
  const bool exists = of_loss ? lane == 0 : number < p.numbers();
  double sum = largest ? -std::numeric_limits<double>::infinity() : 0;
  const auto add = [&](double part) { sum = largest ? fmax(sum, part) : sum + part; };
  if (exists) {
    const int span = p.span * kSums, chunk = of_class ? number / span : 0;
    const bool all = of_loss || p.rows != p.batch, joined = p.class_chunks == 1;  // joined: images lie side by side
    const int64_t stride = span + kExtras, first = all ? 0 : row, images = all ? p.batch : 1;
    const double* image = p.data + (first * p.class_chunks + chunk) * p.tiles * stride;
    image += of_class ? number % span : span + extra;
    for (int64_t i = 0; i < (joined ? 1 : images); ++i, image += p.class_chunks * p.tiles * stride) {
#pragma unroll 8
      for (int64_t tile = share; tile < (joined ? images : 1) * p.tiles; tile += kShares) add(image[tile * stride]);
    }
  }
  parts[share][lane] = sum;
  __syncthreads();
  if (share != 0 || !exists) return;
  for (int i = 1; i < kShares; ++i) add(parts[i][lane]);
  if (largest && sum == -std::numeric_limits<double>::infinity()) sum = 0;  // no label is out of range
  if (of_loss) {
    *p.loss = sum;
  } else if (of_class) {
    p.sums[row * p.classes * kSums + number] = sum;
  } else {
    p.totals[row * kTotals + extra - kValid] = sum;
  }
}

}  // namespace metricseg::region
