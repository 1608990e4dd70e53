// Segments on CUDA: the distinct pairs (cluster, label) of each image in a hash table, which holds a pixel of each; their
// ranks in the image by comparison; and the numbers over the batch. Integers only: the order of the atomics decides
// where a pair lies in the table, but not its rank. Pixels are read twice; ids of any size are compared, not addressed.
#pragma once

#include "../common/cuda/reduce.cuh"
#include "params.h"

namespace metricseg::segments {

constexpr int kSplitThreads = 256, kRun = 8;  // of neighboring pixels of a thread, which look up a pair once

struct Pair {
  int64_t cluster, label;

  METRICSEG_HD bool operator==(const Pair& other) const { return cluster == other.cluster && label == other.label; }
  METRICSEG_HD bool operator<(const Pair& other) const {
    return cluster != other.cluster ? cluster < other.cluster : label < other.label;
  }
};

// Tables of 2^n slots an image, more than twice its pixels.
struct SplitScratch {
  uint32_t size;     // slots of an image
  unsigned* counts;  // [B] distinct pairs; zero at first
  unsigned* slots;   // [B, size] a pixel of the image plus 1, or 0 for none; zero at first
  unsigned* pairs;   // [B, area] the slots in use
  int64_t* numbers;  // [B, size] of the segments
};

__device__ __forceinline__ Pair pair_at(const SplitParams& p, int64_t image, uint32_t pixel) {
  const auto width = static_cast<uint32_t>(p.width);
  return {label_at(p.ids, image, pixel / width, pixel % width),
          label_at(p.labels, image, pixel / width, pixel % width)};
}

__device__ __forceinline__ uint32_t hash(const Pair& pair) {
  uint64_t z = static_cast<uint64_t>(pair.cluster) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(pair.label);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  return static_cast<uint32_t>((z ^ (z >> 27)) >> 16);
}

// The slot of a pair, which gets one if it has none.
__device__ __forceinline__ int64_t slot_of(const SplitParams& p, const SplitScratch& s, int64_t image, uint32_t pixel,
                                           const Pair& pair) {
  unsigned* const slots = s.slots + image * s.size;
  for (uint32_t at = hash(pair) & (s.size - 1);; at = (at + 1) & (s.size - 1)) {
    const unsigned old = atomicCAS(&slots[at], 0u, pixel + 1);
    if (old == 0) s.pairs[image * p.area() + atomicAdd(&s.counts[image], 1u)] = at;
    if (old == 0 || pair_at(p, image, old - 1) == pair) return at;
  }
}

// dense: the slot of each pixel, or -1. A thread takes a run of pixels of an image.
__global__ void __launch_bounds__(kSplitThreads) insert_kernel(SplitParams p, SplitScratch s, int64_t blocks) {
  const int64_t image = blockIdx.x / blocks, area = p.area();
  const int64_t begin = (blockIdx.x % blocks * kSplitThreads + threadIdx.x) * kRun;
  Pair last{-1, -1};
  int64_t slot = -1;
  for (int64_t pixel = begin; pixel < begin + kRun && pixel < area; ++pixel) {
    const Pair pair = pair_at(p, image, static_cast<uint32_t>(pixel));
    if (!(pair == last)) {
      const bool known = pair.cluster >= 0 && class_of(pair.label, p.num_classes, p.ignore_index) >= 0;
      slot = known ? slot_of(p, s, image, static_cast<uint32_t>(pixel), pair) : -1;
      last = pair;
    }
    p.dense[image * area + pixel] = slot;
  }
}

// Sum of the pairs of the images [0, images), in every thread.
__device__ __forceinline__ int64_t count_pairs(const SplitScratch& s, int64_t images) {
  int64_t pairs = 0;
  for (int64_t b = threadIdx.x; b < images; b += blockDim.x) pairs += s.counts[b];
  return block_sum(pairs);
}

// The number of a pair: pairs of images before, and smaller pairs of its own image.
__global__ void __launch_bounds__(kSplitThreads) rank_kernel(SplitParams p, SplitScratch s, int64_t blocks) {
  __shared__ int64_t clusters[kSplitThreads];
  __shared__ int labels[kSplitThreads];
  const int64_t image = blockIdx.x / blocks, first = blockIdx.x % blocks * kSplitThreads, count = s.counts[image];
  if (first >= count) return;
  const unsigned* const pairs = s.pairs + image * p.area();
  const unsigned* const slots = s.slots + image * s.size;
  const auto load = [&](int64_t i) { return i < count ? pair_at(p, image, slots[pairs[i]] - 1) : Pair{-1, -1}; };
  const int64_t i = first + threadIdx.x;
  const Pair own = load(i);
  int64_t number = count_pairs(s, image);
  for (int64_t begin = 0; begin < count; begin += kSplitThreads) {
    const Pair pair = load(begin + threadIdx.x);
    __syncthreads();
    clusters[threadIdx.x] = pair.cluster;
    labels[threadIdx.x] = static_cast<int>(pair.label);
    __syncthreads();
    const int others = count - begin < kSplitThreads ? static_cast<int>(count - begin) : kSplitThreads;
    for (int other = 0; other < others; ++other) number += Pair{clusters[other], labels[other]} < own;
  }
  if (i >= count) return;
  s.numbers[image * s.size + pairs[i]] = number;
  if (number < p.capacity) p.found[number] = own.label;
}

// A thread per pixel; the grid also fills the labels of no segment.
__global__ void __launch_bounds__(kSplitThreads) number_kernel(SplitParams p, SplitScratch s) {
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kSplitThreads) + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kSplitThreads, area = p.area();
  const int64_t total = count_pairs(s, p.batch);
  if (thread == 0) *p.count = total;
  for (int64_t i = total + thread; i < p.capacity; i += threads) p.found[i] = -1;
  if (thread >= p.batch * area) return;
  const int64_t slot = p.dense[thread];
  const int64_t number = slot < 0 ? -1 : s.numbers[thread / area * s.size + slot];
  p.dense[thread] = number < p.capacity ? number : -1;
}

}  // namespace metricseg::segments
