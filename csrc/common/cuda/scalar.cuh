// Scalar types chosen at run time: one instantiation of a kernel serves every storage type.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace metricseg {

enum class Scalar : int { kFloat64, kFloat32, kBFloat16, kFloat16, kUInt8, kInt32, kInt64 };

template <typename T>
__device__ __forceinline__ T widen(double v) {
  return static_cast<T>(v);
}
template <typename T>
__device__ __forceinline__ T widen(float v) {
  return static_cast<T>(v);
}
template <typename T>
__device__ __forceinline__ T widen(__nv_bfloat16 v) {
  return static_cast<T>(__bfloat162float(v));
}
template <typename T>
__device__ __forceinline__ T widen(__half v) {
  return static_cast<T>(__half2float(v));
}

// Rounds once, to nearest even.
__device__ __forceinline__ void narrow(double v, double& to) { to = v; }
__device__ __forceinline__ void narrow(float v, float& to) { to = v; }
__device__ __forceinline__ void narrow(float v, __nv_bfloat16& to) { to = __float2bfloat16_rn(v); }
__device__ __forceinline__ void narrow(float v, __half& to) { to = __float2half_rn(v); }

template <typename Stored>
__device__ __forceinline__ const Stored* stored(const void* data) {
  return static_cast<const Stored*>(data);
}
template <typename Stored>
__device__ __forceinline__ Stored* stored(void* data) {
  return static_cast<Stored*>(data);
}

// Calls f with the data as what it is. Arithmetic in T goes with storage in double for double, in anything else for
// float: the types that cannot occur are not compiled.
template <typename T, typename Void, typename F>
__device__ __forceinline__ void with_storage(Void* data, Scalar type, F f) {
  if constexpr (sizeof(T) == sizeof(double)) {
    f(stored<double>(data));
  } else if (type == Scalar::kFloat32) {
    f(stored<float>(data));
  } else if (type == Scalar::kBFloat16) {
    f(stored<__nv_bfloat16>(data));
  } else {
    f(stored<__half>(data));
  }
}

template <typename T>
__device__ __forceinline__ T load_float(const void* data, Scalar type, int64_t i) {
  switch (type) {
    case Scalar::kFloat64:
      return widen<T>(static_cast<const double*>(data)[i]);
    case Scalar::kFloat32:
      return widen<T>(static_cast<const float*>(data)[i]);
    case Scalar::kBFloat16:
      return widen<T>(static_cast<const __nv_bfloat16*>(data)[i]);
    default:
      return widen<T>(static_cast<const __half*>(data)[i]);
  }
}

__device__ __forceinline__ int64_t load_label(const void* data, Scalar type, int64_t i) {
  switch (type) {
    case Scalar::kUInt8:
      return static_cast<const uint8_t*>(data)[i];
    case Scalar::kInt32:
      return static_cast<const int32_t*>(data)[i];
    default:
      return static_cast<const int64_t*>(data)[i];
  }
}

}  // namespace metricseg
