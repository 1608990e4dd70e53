// Choice of anchors on CUDA: a memset and four launches, without synchronization with the host.
//   count    a thread per run of 16 pixels      plan     one block: slots, quotas, likely limits
//   collect  a thread per pixel: its key, if it is below the limit of its cell, becomes a candidate
//   place    a thread per candidate: its rank among the keys of its cell is its row; before that a block bisects the
//            limit over the image if the candidates of its cell are too few or too many
// Labels and predictions are read twice; once would be the least. Candidates are found in any order, and ranked by distinct keys: the
// same bits every time. Derivation: docs/kernels/anchors.md.
#pragma once

#include <limits>

#include "../common/cuda/reduce.cuh"
#include "params.h"

namespace metricseg::anchors {

constexpr int kThreads = 256, kPlanThreads = 512, kRun = 16;
using Count = unsigned long long;

// A cell with a quota of n > 0 pixels: rows [place, place + n) of the result.
struct Chosen {
  int64_t cell, n, place;
  uint64_t limit;
};

struct Candidate {
  uint64_t key;
  int64_t pixel;
};

// Capacity for the candidates of a cell with quota n; those of chosen cell r begin where r cells with `place` rows end.
METRICSEG_HD int64_t capacity(int64_t n, int64_t cells = 1) { return 2 * n + 96 * cells; }

struct Scratch {
  unsigned* have;         // [2 B K] pixels of each cell, zero at first
  Count* bad;             // [2] labels out of range and the largest of them, its sign bit flipped; zero at first
  int* rank;              // [2 B K] a cell's place in `chosen`, or -1
  Chosen* chosen;         // [most_cells]
  unsigned* found;        // [most_cells] candidates
  int64_t* used;          // [] chosen cells
  Candidate* candidates;  // [capacity(S, most_cells)]
};

constexpr uint64_t kSign = uint64_t(1) << 63;

struct Position {
  int64_t b, y, x;
};

// An image has less than 2^32 pixels: divisions of 32 bits within it.
__device__ __forceinline__ Position position_in(const SampleParams& p, int64_t image, uint32_t i) {
  const auto width = static_cast<uint32_t>(p.width);
  return {image, i / width, i % width};
}

__device__ __forceinline__ Position position_of(const SampleParams& p, int64_t pixel) {
  const int64_t area = p.height * p.width, image = pixel / area;
  return position_in(p, image, static_cast<uint32_t>(pixel - image * area));
}

__device__ __forceinline__ int64_t cell_of(const SampleParams& p, Position at) {
  const int64_t label = class_of(label_at(p.labels, at.b, at.y, at.x), p.num_classes, p.ignore_index);
  if (label < 0) return label;
  return 2 * (at.b * p.num_classes + label) + p.second(at.b, at.y, at.x, label);
}

// The smallest limit that n keys do not exceed; count_below(limit) is this thread's share of those that don't.
template <typename F>
__device__ __forceinline__ uint64_t bisect(int64_t n, F count_below) {
  uint64_t low = 0, high = ~uint64_t(0);
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    if (block_sum(count_below(middle)) >= n) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

__global__ void __launch_bounds__(kThreads) count_kernel(SampleParams p, Scratch s) {
  const int64_t begin = (blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x) * kRun;
  const int64_t end = begin + kRun < p.pixels() ? begin + kRun : p.pixels();
  Position at = position_of(p, begin);
  int64_t cell = kIgnored;
  unsigned run = 0;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t next = cell_of(p, at);
    if (next == kOutOfRange) {
      atomicAdd(&s.bad[0], Count(1));
      atomicMax(&s.bad[1], static_cast<Count>(label_at(p.labels, at.b, at.y, at.x)) ^ static_cast<Count>(kSign));
    }
    if (next != cell) {
      if (cell >= 0) atomicAdd(&s.have[cell], run);
      cell = next;
      run = 0;
    }
    ++run;
    if (++at.x == p.width) at = position_of(p, pixel + 1);
  }
  if (cell >= 0) atomicAdd(&s.have[cell], run);
}

__global__ void __launch_bounds__(kPlanThreads) plan_kernel(SampleParams p, Scratch s) {
  const int64_t slots = p.batch * p.num_classes;
  const auto have = [&](int64_t slot, int group) { return static_cast<int64_t>(s.have[2 * slot + group]); };
  const auto open = [&](int64_t slot) { return p.rules.open(have(slot, 0), have(slot, 1)); };
  int64_t open_slots = 0;
  for (int64_t slot = threadIdx.x; slot < slots; slot += kPlanThreads) open_slots += open(slot);
  const int64_t all = block_sum(open_slots);
  const Keys keys = Keys::make(*p.seed, kSlots);
  uint64_t limit = ~uint64_t(0);
  if (all > p.rules.max_samples) {
    limit = bisect(p.rules.max_samples, [&](uint64_t middle) {
      int64_t below = 0;
      for (int64_t slot = threadIdx.x; slot < slots; slot += kPlanThreads) below += open(slot) && keys(slot) <= middle;
      return below;
    });
  }

  // each thread a strip of slots: first the number of their rows and cells, then the places of these
  const int64_t views = p.rules.views(all), strip = (slots + kPlanThreads - 1) / kPlanThreads;
  const int64_t begin = threadIdx.x * strip, end = begin + strip < slots ? begin + strip : slots;
  const auto quota = [&](int64_t slot, int group) -> int64_t {
    if (!open(slot) || keys(slot) > limit) return 0;
    const int64_t from_0 = p.rules.first(have(slot, 0), have(slot, 1), views);
    if (group == 0) return from_0;
    return have(slot, 1) < views - from_0 ? have(slot, 1) : views - from_0;
  };
  constexpr int kRows = 32;  // rows in the upper half of a word, cells in the lower
  Count needed = 0;
  for (int64_t cell = 2 * begin; cell < 2 * end; ++cell) {
    const int64_t n = quota(cell / 2, cell % 2);
    needed += (static_cast<Count>(n) << kRows) + (n > 0);
  }
  const Count before = block_scan(needed) - needed;
  int64_t place = static_cast<int64_t>(before >> kRows);
  int rank = static_cast<int>(before & 0xffffffffu);
  for (int64_t cell = 2 * begin; cell < 2 * end; ++cell) {
    const int64_t n = quota(cell / 2, cell % 2);
    s.rank[cell] = n > 0 ? rank : -1;
    if (n == 0) continue;
    s.chosen[rank] = {cell, n, place, likely_limit(s.have[cell], n, p.deviations)};
    s.found[rank++] = 0;
    place += n;
  }

  const int64_t rows = block_sum(static_cast<int64_t>(needed >> kRows));
  const int64_t used = block_sum(static_cast<int64_t>(needed & 0xffffffffu));
  for (int64_t row = rows + threadIdx.x; row < p.rules.max_samples; row += kPlanThreads) {
    p.index[row] = -1;
    p.sampled[row] = p.ignore_label;
  }
  if (threadIdx.x == 0) {
    *p.count = rows;
    *s.used = used;
    p.bad[0] = static_cast<int64_t>(s.bad[0]);
    p.bad[1] = s.bad[0] > 0 ? static_cast<int64_t>(s.bad[1] ^ static_cast<Count>(kSign)) : 0;
  }
}

__global__ void __launch_bounds__(kThreads) collect_kernel(SampleParams p, Scratch s) {
  const int64_t pixel = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  if (pixel >= p.pixels()) return;
  const int64_t cell = cell_of(p, position_of(p, pixel));
  const int rank = cell < 0 ? -1 : s.rank[cell];
  if (rank < 0) return;
  const uint64_t key = Keys::make(*p.seed, kPixels)(pixel);
  const Chosen& chosen = s.chosen[rank];
  if (key > chosen.limit) return;
  const unsigned at = atomicAdd(&s.found[rank], 1u);
  if (at < capacity(chosen.n)) s.candidates[capacity(chosen.place, rank) + at] = {key, pixel};
}

// The pixels of a cell with the smallest keys, as many as its quota, whatever its limit: its candidates.
__device__ __forceinline__ void repair(const SampleParams& p, const Chosen& chosen, Candidate* candidates) {
  __shared__ unsigned kept;
  const Keys keys = Keys::make(*p.seed, kPixels);
  const int64_t image = chosen.cell / (2 * p.num_classes), area = p.height * p.width, begin = image * area;
  const auto in_cell = [&](int64_t i) { return cell_of(p, position_in(p, image, i)) == chosen.cell; };
  const uint64_t limit = bisect(chosen.n, [&](uint64_t middle) {
    int64_t below = 0;
    for (int64_t i = threadIdx.x; i < area; i += kThreads) below += keys(begin + i) <= middle && in_cell(i);
    return below;
  });
  if (threadIdx.x == 0) kept = 0;
  __syncthreads();
  for (int64_t i = threadIdx.x; i < area; i += kThreads) {
    const uint64_t key = keys(begin + i);
    if (key <= limit && in_cell(i)) candidates[atomicAdd(&kept, 1u)] = {key, begin + i};
  }
  __syncthreads();
}

// `parts` blocks share the candidates of a cell. If these are fewer than its quota, or more than their capacity, the
// first block finds others, and places them alone.
__global__ void __launch_bounds__(kThreads) place_kernel(SampleParams p, Scratch s, int parts) {
  const int rank = blockIdx.x / parts, part = blockIdx.x % parts;
  if (rank >= *s.used) return;
  const Chosen chosen = s.chosen[rank];
  Candidate* const candidates = s.candidates + capacity(chosen.place, rank);
  int64_t found = s.found[rank], step = parts * kThreads;
  if (found < chosen.n || found > capacity(chosen.n)) {
    if (part > 0) return;
    repair(p, chosen, candidates);
    found = chosen.n;
    step = kThreads;
  }
  for (int64_t i = part * kThreads + threadIdx.x; i < found; i += step) {
    const Candidate candidate = candidates[i];
    int64_t smaller = 0;
    for (int64_t j = 0; j < found; ++j) smaller += candidates[j].key < candidate.key;
    if (smaller < chosen.n) {
      p.index[chosen.place + smaller] = candidate.pixel;
      p.sampled[chosen.place + smaller] = chosen.cell / 2 % p.num_classes;
    }
  }
}

}  // namespace metricseg::anchors
