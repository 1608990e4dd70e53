// Order of the rows of one or two sides by comparison of all labels: the place of a row is the number of rows before it,
// its group that of rows of both sides with a smaller label; -1 for rows that take no part, which come first. N^2
// comparisons: up to some thousand rows they take less time than the launches of a sort. A block places 64 rows, each by
// four threads.
#pragma once

#include "../../common/cuda/reduce.cuh"
#include "../../common/cuda/scalar.cuh"
#include "sort.h"

namespace metricseg::row_pairs {

constexpr int kSortThreads = 256, kLanesOfRow = 4, kSorted = kSortThreads / kLanesOfRow;

template <typename T>
__global__ void __launch_bounds__(kSortThreads) sort_kernel(SortParams<T> p) {
  __shared__ int64_t labels[kSortThreads], ids[kSortThreads];
  __shared__ bool present[kSortThreads];
  const int blocks = (p.sides[0].count + kSorted - 1) / kSorted;
  const int which = static_cast<int>(blockIdx.x) < blocks ? 0 : 1;
  const Labeled<T>& own = p.sides[which];
  const int i = (static_cast<int>(blockIdx.x) - which * blocks) * kSorted + threadIdx.x / kLanesOfRow;
  const bool with_ids(own.ids), known = i < own.count;
  const auto label_of = [](const Map& map, int at) { return load_label(map, at * map.x); };
  const auto takes_part = [&](const Labeled<T>& side, int at, int64_t label) {
    return label != p.ignore_index && !(side.drops && load_float<T>(side.weights, at * side.weights.x) == T(0));
  };
  const int64_t label = known ? label_of(own.labels, i) : 0, id = known && with_ids ? label_of(own.ids, i) : 0;
  const bool part = known && takes_part(own, i, label);
  int place = 0, smaller = 0, lower = 0;
  for (int s = 0; s < 2; ++s) {
    const Labeled<T>& side = p.sides[s];
    for (int begin = 0; begin < side.count; begin += kSortThreads) {
      __syncthreads();
      const int j = begin + threadIdx.x;
      if (j < side.count) {
        labels[threadIdx.x] = label_of(side.labels, j);
        ids[threadIdx.x] = with_ids ? label_of(side.ids, j) : 0;
        present[threadIdx.x] = takes_part(side, j, labels[threadIdx.x]);
      }
      __syncthreads();
      const int end = side.count - begin < kSortThreads ? side.count - begin : kSortThreads;
      for (int k = threadIdx.x % kLanesOfRow; k < end; k += kLanesOfRow) {
        const bool less = labels[k] < label, earlier = begin + k < i;
        smaller += less;
        lower += ids[k] < id;
        if (s != which) continue;
        place += part ? !present[k] || less || (labels[k] == label && earlier) : !present[k] && earlier;
      }
    }
  }
  place = group_sum(place, kLanesOfRow);
  smaller = group_sum(smaller, kLanesOfRow);
  lower = group_sum(lower, kLanesOfRow);
  if (!known || threadIdx.x % kLanesOfRow != 0) return;
  own.order[place] = i;
  own.groups[place] = part ? smaller : -1;
  if (with_ids) own.ranked_ids[place] = lower;
  if (own.sorted_weights) own.sorted_weights[place] = load_float<T>(own.weights, i * own.weights.x);
  if (own.sorted_factors) own.sorted_factors[place] = load_float<T>(own.factors, i * own.factors.x);
}

}  // namespace metricseg::row_pairs
