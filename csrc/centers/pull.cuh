// The pull of pixels to the centers of their classes. A block of `pull_sums` adds the target similarities of 32 classes
// in a part of an image: lanes are classes, and warps take every eighth run of 32 pixels. One block of `pull_mean` adds
// the parts, a warp an image, lanes classes. Formulas: metricseg_kernels/centers/pull.py. Derivation:
// docs/kernels/centers.md.
#pragma once

#include <limits>

#include "../engines/pixel_rows/views.cuh"
#include "params.h"

namespace metricseg::centers {

constexpr int kPullWarps = kProductThreads / kWarp;
constexpr int kPullParts = 64, kPullBlocks = 256;  // of an image, and of all, at most: one block adds them

template <typename T>
struct PullShares {
  T* sums;                       // [B, parts, 2, K] of target similarities, and numbers of pixels
  int* out_of_range;             // [B, parts]
  int64_t parts, tiles, blocks;  // of an image; of classes
};

template <typename T>
__global__ void __launch_bounds__(kProductThreads) pull_sums_kernel(PullParams<T> p, PullShares<T> s) {
  __shared__ T values[kProductThreads];
  __shared__ int labels[kProductThreads];
  __shared__ T shares[2][kPullWarps][kWarp];
  const int64_t block = blockIdx.x % s.blocks, part = blockIdx.x / s.blocks, image = part / s.parts;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, first = warp * kWarp;
  const int64_t k = block * kWarp + lane, pixels = p.height * p.width;
  T sum = 0, count = 0;
  int bad[1] = {0};
  const int64_t begin = s.tiles * (part % s.parts) / s.parts, end = s.tiles * (part % s.parts + 1) / s.parts;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t n = tile * kProductThreads + threadIdx.x;
    int64_t label = kIgnored;
    if (n < pixels) label = class_of(label_at(p.labels, image, n / p.width, n % p.width), p.classes, p.ignore_index);
    if (label == kOutOfRange) bad[0] = 1;
    __syncwarp();  // a warp reads what its lanes have written
    labels[threadIdx.x] = static_cast<int>(label);
    values[threadIdx.x] = label >= 0 ? p.target_similarity[image * pixels + n] : T(0);
    __syncwarp();
#pragma unroll 8
    for (int i = 0; i < kWarp; ++i) {
      if (labels[first + i] != k) continue;
      sum += values[first + i];
      count += 1;
    }
  }
  shares[0][warp][lane] = sum;
  shares[1][warp][lane] = count;
  block_max(bad);  // barriers
  if (threadIdx.x == 0 && block == 0) s.out_of_range[part] = bad[0];
  if (warp != 0 || k >= p.classes) return;
  for (int other = 1; other < kPullWarps; ++other) {
    sum += shares[0][other][lane];
    count += shares[1][other][lane];
  }
  s.sums[2 * part * p.classes + k] = sum;
  s.sums[(2 * part + 1) * p.classes + k] = count;
}

template <typename T>
__global__ void __launch_bounds__(kProductThreads) pull_mean_kernel(PullParams<T> p, PullShares<T> s) {
  __shared__ T means[kPullWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const T images = p.batch > 0 ? static_cast<T>(p.batch) : T(1);
  T total = 0;
  for (int64_t first = 0; first < p.batch; first += kPullWarps) {
    const int64_t image = first + warp;
    T mean = 0;
    if (image < p.batch) {
      T* const stats = p.stats + image * (p.classes + 1);
      T far = 0, present = 0;
      for (int64_t k = lane; k < p.classes; k += kWarp) {
        T sum = 0, count = 0;
#pragma unroll 4
        for (int64_t part = image * s.parts; part < (image + 1) * s.parts; ++part) {
          sum += s.sums[2 * part * p.classes + k];
          count += s.sums[(2 * part + 1) * p.classes + k];
        }
        const T divisor = p.scale * (count > T(1) ? count : T(1));
        if (count > T(0)) far += T(1) - sum / divisor;
        present += count > T(0);
        stats[1 + k] = divisor;
      }
      bool bad = false;
      for (int64_t part = lane; part < s.parts; part += kWarp) bad |= s.out_of_range[image * s.parts + part] != 0;
      far = group_sum(far, kWarp);
      present = group_sum(present, kWarp);
      present = present > T(1) ? present : T(1);
      bad = __any_sync(kFullMask, bad);
      mean = bad ? std::numeric_limits<T>::quiet_NaN() : far / present;
      if (lane == 0) stats[0] = bad ? std::numeric_limits<T>::infinity() : images * present;
    }
    if (lane == 0) means[warp] = mean;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int other = 0; other < kPullWarps; ++other) total += means[other];
    }
    __syncthreads();  // the means have been read
  }
  if (threadIdx.x == 0) *p.pull = total / images;
}

template <typename T, typename Device>
void mean_pull(Device& device, const PullParams<T>& p) {
  PullShares<T> s{};
  s.tiles = ceil_div(p.height * p.width, kProductThreads);
  s.blocks = ceil_div(p.classes, kWarp);
  const int64_t wanted = kPullBlocks / std::max<int64_t>(p.batch * s.blocks, 1);
  s.parts = std::max<int64_t>(std::min<int64_t>({s.tiles, wanted, kPullParts}), 1);
  s.sums = device.template scratch<T>(2 * p.batch * s.parts * p.classes);
  s.out_of_range = device.template scratch<int>(p.batch * s.parts);
  if (p.batch > 0) device.launch(pull_sums_kernel<T>, p.batch * s.parts * s.blocks, kProductThreads, 0, p, s);
  device.launch(pull_mean_kernel<T>, 1, kProductThreads, 0, p, s);
}

}  // namespace metricseg::centers
