// The k-th largest of n values by radix selection, most significant digit first. Values become unsigned keys of the
// same order, NaN the largest. Each pass is one launch of select_pass: every block derives the digits settled so far
// from the histogram of the pass before, then counts the next 8 bits of the keys that still match. Integer counts: any
// order of the atomics gives the same bits. Reads the values 4 (fp32) or 8 (fp64) times; once would be the least.
#pragma once

#include "../common/cuda/reduce.cuh"
#include "order_key.h"

namespace metricseg::focal {

constexpr int kDigitBits = 8, kBins = 1 << kDigitBits;

struct SelectState {
  unsigned long long prefix;  // the digits settled so far
  unsigned long long rank;    // of the value sought, among the keys that begin with them, from the largest
};

template <typename T>
constexpr int select_passes() {
  return 8 * sizeof(T) / kDigitBits;
}

// The digit whose bin holds the rank, and the rank within that bin; one thread per bin.
__device__ __forceinline__ SelectState settle_digit(const unsigned long long* histogram, SelectState state) {
  __shared__ unsigned long long at_least[2][kBins + 1];  // keys in this bin or above
  __shared__ SelectState settled;
  const int bin = threadIdx.x;
  int from = 0;
  at_least[0][bin] = histogram[bin];
  if (bin == 0) {
    at_least[0][kBins] = at_least[1][kBins] = 0;
    settled = {state.prefix << kDigitBits, 0};
  }
  for (int step = 1; step < kBins; step *= 2, from ^= 1) {
    __syncthreads();
    at_least[from ^ 1][bin] = at_least[from][bin] + (bin + step < kBins ? at_least[from][bin + step] : 0);
  }
  __syncthreads();
  const unsigned long long above = at_least[from][bin + 1];
  if (above <= state.rank && state.rank < at_least[from][bin]) {
    settled = {state.prefix << kDigitBits | static_cast<unsigned>(bin), state.rank - above};
  }
  __syncthreads();
  return settled;
}

__global__ void select_clear(unsigned long long* histograms, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) histograms[i] = 0;
}

// histograms [passes, kBins], zero at first; states [passes + 1]
template <typename T>
__global__ void __launch_bounds__(kBins)
    select_pass(const T* values, int64_t n, int64_t k, int pass, unsigned long long* histograms, SelectState* states) {
  __shared__ unsigned counts[kBins];
  SelectState state{0, static_cast<unsigned long long>(k)};
  if (pass > 0) state = settle_digit(histograms + (pass - 1) * kBins, states[pass - 1]);
  if (blockIdx.x == 0 && threadIdx.x == 0) states[pass] = state;
  counts[threadIdx.x] = 0;
  __syncthreads();
  const int shift = 8 * static_cast<int>(sizeof(T)) - kDigitBits * (pass + 1);
  const int64_t stride = gridDim.x * static_cast<int64_t>(kBins);
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kBins) + threadIdx.x; i < n; i += stride) {
    const unsigned long long digits = static_cast<unsigned long long>(to_key(values[i])) >> shift;
    if (pass == 0 || digits >> kDigitBits == state.prefix) atomicAdd(&counts[digits & (kBins - 1)], 1u);
  }
  __syncthreads();
  if (counts[threadIdx.x] > 0) {
    atomicAdd(&histograms[pass * kBins + threadIdx.x], static_cast<unsigned long long>(counts[threadIdx.x]));
  }
}

template <typename T>
__global__ void __launch_bounds__(kBins)
    select_finish(const unsigned long long* histograms, const SelectState* states, int64_t n, int64_t k, T* result) {
  constexpr int kLast = select_passes<T>() - 1;
  const SelectState state = settle_digit(histograms + kLast * kBins, states[kLast]);
  if (threadIdx.x == 0) {
    *result = k < n ? from_key<T>(static_cast<typename KeyOf<T>::type>(state.prefix)) : T(-1);
  }
}

}  // namespace metricseg::focal
