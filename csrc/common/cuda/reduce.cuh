// Reductions in a fixed order, and the few device intrinsics that several families use.
#pragma once

#include <cmath>
#include <limits>

namespace metricseg {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

// Dynamic shared memory, as an array of T.
#if defined(__CUDACC__)
template <typename T>
__device__ __forceinline__ T* shared_memory() {
  extern __shared__ __align__(16) unsigned char dynamic_shared[];
  return reinterpret_cast<T*>(dynamic_shared);
}
#endif

// The hardware's 2^x; subnormal results are 0.
__device__ __forceinline__ float power_of_2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::exp2(x);
#endif
}

// exp(x) for x <= 0; relative error below (2 + |x|) 2^-23.
__device__ __forceinline__ float exp_nonpositive(float x) { return power_of_2(x * 1.4426950408889634f); }
__device__ __forceinline__ double exp_nonpositive(double x) { return std::exp(x); }

// 1 / x; in fp32 within two units in the last place.
__device__ __forceinline__ float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / x;
#endif
}
__device__ __forceinline__ double reciprocal(double x) { return 1 / x; }

// The same value, opaque to the compiler, so that it does not hoist computations that depend on it.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

// Over the `width` neighboring lanes (a power of two) that share the high bits of the lane index.
template <typename T>
__device__ __forceinline__ T group_sum(T value, int width) {
  for (int step = width / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullMask, value, step);
  return value;
}

template <typename T>
__device__ __forceinline__ T group_max(T value, int width) {
  for (int step = width / 2; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kFullMask, value, step);
    value = value > other ? value : other;
  }
  return value;
}

// The sum over the block in a fixed order, in every thread.
template <typename T>
__device__ __forceinline__ T block_sum(T value) {
  __shared__ T parts[kWarp];
  value = group_sum(value, kWarp);
  __syncthreads();  // the parts of the sum before have been read
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  T sum = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) sum += parts[w];
  return sum;
}

// The sum of `value` over the threads of the block up to this one.
template <typename T>
__device__ __forceinline__ T block_scan(T value) {
  __shared__ T warps[kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const T before = __shfl_up_sync(kFullMask, value, step);
    if (lane >= step) value += before;
  }
  __syncthreads();  // the sums of the scan before have been read
  if (lane == kWarp - 1) warps[warp] = value;
  __syncthreads();
  for (int w = 0; w < warp; ++w) value += warps[w];
  return value;
}

// The largest of each of N values over the block, in every thread.
template <typename T, int N>
__device__ __forceinline__ void block_max(T (&values)[N]) {
  __shared__ T parts[N][kWarp];
  __syncthreads();  // the parts of the call before have been read
#pragma unroll
  for (int i = 0; i < N; ++i) {
    values[i] = group_max(values[i], kWarp);
    if (threadIdx.x % kWarp == 0) parts[i][threadIdx.x / kWarp] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    for (unsigned w = 0; w < blockDim.x / kWarp; ++w) values[i] = parts[i][w] > values[i] ? parts[i][w] : values[i];
  }
}

// Each of N values over the whole block; the result is right in thread 0. combine(i, a, b) joins two of value i.
template <int N, typename Combine>
__device__ __forceinline__ void block_reduce(double (&values)[N], Combine combine) {
  __shared__ double parts[N][kWarp];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  for (int i = 0; i < N; ++i) {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      values[i] = combine(i, values[i], __shfl_xor_sync(kFullMask, values[i], step));
    }
    if (lane == 0) parts[i][warp] = values[i];
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 0; i < N; ++i) {
    values[i] = parts[i][0];
    for (int w = 1; w < warps; ++w) values[i] = combine(i, values[i], parts[i][w]);
  }
}

}  // namespace metricseg
