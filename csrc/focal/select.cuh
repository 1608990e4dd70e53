// The k-th largest of n values by radix selection, most significant digit first. Values become unsigned keys of the
// same order, NaN the largest. Each pass is one launch of select_pass: every block derives the digits settled so far
// from the histogram of the pass before, then counts the next 8 bits of the keys that still match. Integer counts: any
// order of the atomics gives the same bits. Reads the values 4 (fp32) or 8 (fp64) times; once would be the least. Few
// values take one launch of one block, select_alone.
#pragma once

#include "../common/cuda/reduce.cuh"
#include "order_key.h"

namespace metricseg::focal {

constexpr int kDigitBits = 8, kBins = 1 << kDigitBits, kAloneThreads = 1024;
constexpr int64_t kFew = 1 << 16;  // values that one block selects from, by calculation

struct SelectState {
  unsigned long long prefix;  // the digits settled so far
  unsigned long long rank;    // of the value sought, among the keys that begin with them, from the largest
};

template <typename T>
constexpr int select_passes() {
  return 8 * sizeof(T) / kDigitBits;
}

// The digit whose bin holds the rank, and the rank within that bin. A thread has a bin, thread 0 the largest; threads
// beyond the bins have none.
template <typename Count>
__device__ __forceinline__ SelectState settle_digit(const Count* histogram, SelectState state) {
  __shared__ SelectState settled;
  const int bin = kBins - 1 - static_cast<int>(threadIdx.x);
  const unsigned long long count = bin >= 0 ? histogram[bin] : 0, at_least = block_scan(count),
                           above = at_least - count;
  if (threadIdx.x == 0) settled = {state.prefix << kDigitBits, 0};
  __syncthreads();
  if (bin >= 0 && above <= state.rank && state.rank < at_least) {
    settled = {state.prefix << kDigitBits | static_cast<unsigned>(bin), state.rank - above};
  }
  __syncthreads();
  return settled;
}

// counts [kBins] plus the digits of a pass, of the keys that begin with those settled; values `first`, first + stride...
template <typename T>
__device__ __forceinline__ void count_digits(const T* values, int64_t n, int64_t first, int64_t stride, int pass,
                                             const SelectState& state, unsigned* counts) {
  const int shift = 8 * static_cast<int>(sizeof(T)) - kDigitBits * (pass + 1);
#pragma unroll 4
  for (int64_t i = first; i < n; i += stride) {
    const unsigned long long digits = static_cast<unsigned long long>(to_key(values[i])) >> shift;
    if (pass == 0 || digits >> kDigitBits == state.prefix) atomicAdd(&counts[digits & (kBins - 1)], 1u);
  }
}

// The value of the settled key, or `most` if that is smaller; NaN stays. -1 if there are not more than k values.
template <typename T>
__device__ __forceinline__ T chosen(const SelectState& state, int64_t n, int64_t k, T most) {
  const T found = k < n ? from_key<T>(static_cast<typename KeyOf<T>::type>(state.prefix)) : T(-1);
  return found > most ? most : found;
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
  count_digits(values, n, blockIdx.x * static_cast<int64_t>(kBins) + threadIdx.x,
               gridDim.x * static_cast<int64_t>(kBins), pass, state, counts);
  __syncthreads();
  if (counts[threadIdx.x] > 0) {
    atomicAdd(&histograms[pass * kBins + threadIdx.x], static_cast<unsigned long long>(counts[threadIdx.x]));
  }
}

template <typename T>
__global__ void __launch_bounds__(kBins) select_finish(const unsigned long long* histograms, const SelectState* states,
                                                       int64_t n, int64_t k, T most, T* result) {
  constexpr int kLast = select_passes<T>() - 1;
  const SelectState state = settle_digit(histograms + kLast * kBins, states[kLast]);
  if (threadIdx.x == 0) *result = chosen(state, n, k, most);
}

// All passes over few values by one block.
template <typename T>
__global__ void __launch_bounds__(kAloneThreads)
    select_alone(const T* values, int64_t n, int64_t k, T most, T* result) {
  __shared__ unsigned counts[kBins];
  SelectState state{0, static_cast<unsigned long long>(k)};
  for (int pass = 0; pass < select_passes<T>(); ++pass) {
    if (threadIdx.x < kBins) counts[threadIdx.x] = 0;
    __syncthreads();
    count_digits(values, n, threadIdx.x, kAloneThreads, pass, state, counts);
    __syncthreads();
    state = settle_digit(counts, state);
  }
  if (threadIdx.x == 0) *result = chosen(state, n, k, most);
}

}  // namespace metricseg::focal
