// CUDA's words on the host, as far as the kernels need them. fibers.h runs the threads, blocks one after another;
// races.h finds races. Shared memory is sized exactly and starts as NaN, so that address sanitizer and the results show
// every slip.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one at a time

using std::fmax;
using std::max;
using std::min;

// --- 16-bit floats: conversions round to nearest even ---

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};

template <typename To, typename From>
To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __bfloat162float(__nv_bfloat16 v) { return bit_copy<float>(uint32_t(v.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const uint32_t bits = bit_copy<uint32_t>(v);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline float __half2float(__half v) {
  const int exponent = v.bits >> 10 & 31, mantissa = v.bits & 1023;
  const float sign = v.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24));
}
inline __half __float2half_rn(float v) {
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const float size = std::fabs(v);
  if (v != v) return {0x7fff};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (size < std::ldexp(1.0f, -14)) return {static_cast<uint16_t>(sign | int(std::nearbyint(std::ldexp(size, 24))))};
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // size = fraction 2^exponent, fraction in [1/2, 1)
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(fraction, 11)));  // [1024, 2048]
  return {static_cast<uint16_t>(sign | (((exponent + 13) << 10) + mantissa))};
}

// --- what kernels call ---

inline void __syncthreads(int line = __builtin_LINE()) { cuda_host::wait_for_block(line); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_host::wait_for_warp(mask, cuda_host::kSyncWarp); }

// Shuffles order no accesses to memory. `width`: of the groups of lanes that exchange.
template <typename T>
METRICSEG_UNWATCHED T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  const unsigned from = (threadIdx.x % 32 & ~(width - 1)) | (lane & (width - 1));
  const auto of = cuda_host::exchange(mask, "a shuffle", value);
  if (~mask >> from & 1) throw std::logic_error("a shuffle reads lane " + std::to_string(from) + ", not in its mask");
  return of(from);
}
template <typename T>
METRICSEG_UNWATCHED T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int own = static_cast<int>(threadIdx.x % 32), from = own ^ lanes;
  return __shfl_sync(mask, value, from / width > own / width ? own : from);
}
template <typename T>
METRICSEG_UNWATCHED T __shfl_up_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int own = static_cast<int>(threadIdx.x % 32);
  return __shfl_sync(mask, value, own % width < lanes ? own : own - lanes);
}
template <typename T>
METRICSEG_UNWATCHED T __shfl_down_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int own = static_cast<int>(threadIdx.x % 32);
  return __shfl_sync(mask, value, own % width + lanes >= width ? own : own + lanes);
}

METRICSEG_UNWATCHED inline unsigned __ballot_sync(unsigned mask, bool value) {
  const auto of = cuda_host::exchange(mask, "a vote", value);
  unsigned lanes = 0;
  for (unsigned i = 0; i < 32; ++i) lanes |= unsigned((mask >> i & 1) && of(i)) << i;
  return lanes;
}
inline bool __all_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) == mask; }
inline bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }

namespace cuda_host {
template <typename T, typename F>
METRICSEG_UNWATCHED T update(T* address, [[maybe_unused]] const void* code, const F& f) {
  METRICSEG_RACES(races.touch(address, sizeof(T), true, true, code);)
  const T old = *address;
  *address = f(old);
  return old;
}
}  // namespace cuda_host

template <typename T>
METRICSEG_CALLED T atomicAdd(T* address, T value) {
  return cuda_host::update(address, METRICSEG_CODE, [&](T old) METRICSEG_UNWATCHED { return T(old + value); });
}
template <typename T>
METRICSEG_CALLED T atomicMax(T* address, T value) {
  return cuda_host::update(address, METRICSEG_CODE,
                           [&](T old) METRICSEG_UNWATCHED { return old < value ? value : old; });
}
template <typename T>
METRICSEG_CALLED T atomicCAS(T* address, T expected, T value) {
  return cuda_host::update(address, METRICSEG_CODE,
                           [&](T old) METRICSEG_UNWATCHED { return old == expected ? value : old; });
}

namespace metricseg {
template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(cuda_host::block.shared.get());
}
}  // namespace metricseg
