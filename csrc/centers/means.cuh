// Means of classes from their sums, and the gradients of these sums. A block of `means` adds the parts of 32 channels of
// a class, in order; by labels the means are the epilogue of `label_sums`. Formulas: metricseg_kernels/centers/means.py.
// Derivation: docs/kernels/centers.md.
#pragma once

#include "../engines/pixel_rows/label_sums.cuh"
#include "rows.cuh"

namespace metricseg::centers {

constexpr int kJoined = 32, kJoinGroups = kProductThreads / kJoined;

// What a class leaves: its center and kept mean of a channel, and its total and presence.
template <typename T>
__device__ __forceinline__ void store_mean(const MeansParams<T>& p, int64_t place, T sum, T total) {
  const T mean = sum / total;
  with_storage<T>(p.centers, [&](auto* centers) { narrow(mean, centers[place]); });
  if (p.kept) p.kept[place] = mean;
}

template <typename T>
__device__ __forceinline__ T total_of(const MeansParams<T>& p, T mass) {
  return p.by_mass ? mass + p.least : p.least;
}

// From shares [B, parts, K, C] and masses [B, mass_parts, K].
template <typename T>
__global__ void __launch_bounds__(kProductThreads)
    means_kernel(MeansParams<T> p, const T* shares, int64_t parts, const T* masses, int64_t mass_parts) {
  __shared__ T sums[kJoinGroups][kJoined];
  const int64_t chunks = p.channels > kJoined ? (p.channels + kJoined - 1) / kJoined : 1;
  const int64_t row = blockIdx.x / chunks, chunk = blockIdx.x % chunks, image = row / p.classes, k = row % p.classes;
  const int lane = threadIdx.x % kJoined, share = threadIdx.x / kJoined;
  const int64_t c = chunk * kJoined + lane;
  T mass = 0, sum = 0;
  for (int64_t part = threadIdx.x; part < mass_parts; part += kProductThreads) {
    mass += masses[(image * mass_parts + part) * p.classes + k];
  }
  mass = block_sum(mass);
  if (c < p.channels) {
#pragma unroll 4
    for (int64_t part = share; part < parts; part += kJoinGroups) {
      sum += shares[((image * parts + part) * p.classes + k) * p.channels + c];
    }
  }
  sums[share][lane] = sum;
  __syncthreads();
  const T total = total_of(p, mass);
  if (threadIdx.x == 0 && chunk == 0) {
    p.totals[row] = total;
    p.present[row] = mass > T(0);
  }
  if (share != 0 || c >= p.channels) return;
  for (int other = 1; other < kJoinGroups; ++other) sum += sums[other][lane];
  store_mean(p, row * p.channels + c, sum, total);
}

template <typename T, typename Device>
void finish_means(Device& device, const MeansParams<T>& p, const T* shares, int64_t parts, const T* masses,
                  int64_t mass_parts) {
  const int64_t blocks = p.batch * p.classes * std::max<int64_t>(ceil_div(p.channels, kJoined), 1);
  if (blocks > 0) device.launch(means_kernel<T>, blocks, kProductThreads, 0, p, shares, parts, masses, mass_parts);
}

// The epilogue of sums by label.
template <typename T>
struct MeansOfLabels {
  static constexpr bool kOfWholeSums = true;
  MeansParams<T> p;
  const unsigned* out_of_range;  // [B]

  __device__ __forceinline__ T total(int64_t label, int64_t count) const {
    return out_of_range[label / p.classes] ? std::numeric_limits<T>::quiet_NaN() : total_of(p, static_cast<T>(count));
  }
  __device__ __forceinline__ void count(int64_t label, int64_t count) const {
    p.totals[label] = total(label, count);
    p.present[label] = count > 0;
  }
  __device__ __forceinline__ void sum(int64_t label, int64_t channel, T sum, int64_t count) const {
    store_mean(p, label * p.channels + channel, sum, total(label, count));
  }
};

// grad_sums = grad / total; grad_mass = -<grad / total, mean>, if mass divides. By labels a total may be NaN: then 0.
template <typename T>
__global__ void __launch_bounds__(kRowThreads) means_bwd_kernel(MeansGradParams<T> p) {
  const int64_t row = blockIdx.x, begin = row * p.channels;
  const T total = p.totals[row];
  const bool none = !p.grad_mass && total != total;
  T along = 0;
  for (int64_t c = threadIdx.x; c < p.channels; c += kRowThreads) {
    const T share = none ? T(0) : load_float<T>(p.grad, begin + c) / total;
    p.grad_sums[begin + c] = share;
    if (p.means) along += share * load_float<T>(p.means, begin + c);
  }
  if (!p.grad_mass) return;
  along = block_sum(along);
  if (threadIdx.x == 0) p.grad_mass[row] = -along;
}

// p with grad_sums, and grad_mass if it is soft, in scratch.
template <typename T, typename Device>
MeansGradParams<T> sums_gradient(Device& device, MeansGradParams<T> p, bool soft) {
  const int64_t rows = p.batch * p.classes;
  p.grad_sums = device.template scratch<T>(rows * p.channels);
  if (soft) p.grad_mass = device.template scratch<T>(rows);
  if (rows > 0) device.launch(means_bwd_kernel<T>, rows, kRowThreads, 0, p);
  return p;
}

}  // namespace metricseg::centers
