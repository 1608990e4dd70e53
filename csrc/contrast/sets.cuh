// Pixels and prototypes as the two sets of "nca", by comparison of each with all prototypes: a thread a row. The rank of a
// label is twice the number of prototypes with a smaller one, and odd if a prototype has it, so that no other label
// shares it.
#pragma once

#include "params.h"

namespace metricseg::contrast {

constexpr int kSetThreads = 128;

__global__ void __launch_bounds__(kSetThreads) sets_kernel(SetsParams p) {
  __shared__ int64_t others[kSetThreads];
  const auto alive = [&](int64_t label) { return label != p.ignore_index && label >= 0; };
  const auto prototype = [&](int64_t j) { return load_label(p.prototype_labels, j * p.prototype_labels.x); };
  const int64_t blocks = (p.pixels + kSetThreads - 1) / kSetThreads;
  const bool of_pixels = blockIdx.x < blocks;
  const int64_t i = (blockIdx.x - (of_pixels ? 0 : blocks)) * int64_t(kSetThreads) + threadIdx.x;
  const bool known = i < (of_pixels ? p.pixels : p.count);
  int64_t label = 0;
  if (known) label = of_pixels ? load_label(p.labels, i * p.labels.x) : prototype(i);
  int smaller = 0, equal = 0;
  for (int64_t begin = 0; begin < p.count; begin += kSetThreads) {
    __syncthreads();
    if (begin + threadIdx.x < p.count) others[threadIdx.x] = prototype(begin + threadIdx.x);
    __syncthreads();
    const int end = p.count - begin < kSetThreads ? static_cast<int>(p.count - begin) : kSetThreads;
    for (int k = 0; k < end; ++k) {
      smaller += others[k] < label;
      equal += others[k] == label;
    }
  }
  if (!known) return;
  if (!of_pixels) {
    p.y[i] = alive(label) ? 2 * smaller + 1 : -1;
    p.places[i] = i;
    return;
  }
  const int64_t segment = load_label(p.segment_ids, i * p.segment_ids.x);
  p.x[i] = label == p.ignore_index || segment < 0 ? -1 : 2 * smaller + (equal > 0);
  // its own prototype is left out if another has its label; prototypes of one label take part, or none does
  const bool own = segment >= 0 && segment < p.count && prototype(segment) == label;
  p.ids[i] = alive(label) && equal > own ? segment : -1;
}

template <class Device>
void mark_sets(Device& device, const SetsParams& p) {
  const int64_t blocks = ceil_div(p.pixels, kSetThreads) + ceil_div(p.count, kSetThreads);
  if (blocks > 0) device.launch(sets_kernel, blocks, kSetThreads, 0, p);
}

}  // namespace metricseg::contrast
