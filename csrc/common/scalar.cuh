// Scalars that a kernel is told about at run time: one instantiation serves every storage type.
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

// Calls f with the data as what it is. Arithmetic in T goes with storage in double for double, in anything else for
// float: the types that cannot occur are not compiled.
template <typename T, typename F>
__device__ __forceinline__ void with_storage(const void* data, Scalar type, F f) {
  if constexpr (sizeof(T) == sizeof(double)) {
    f(static_cast<const double*>(data));
  } else if (type == Scalar::kFloat32) {
    f(static_cast<const float*>(data));
  } else if (type == Scalar::kBFloat16) {
    f(static_cast<const __nv_bfloat16*>(data));
  } else {
    f(static_cast<const __half*>(data));
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

// Rounds once, to nearest even.
__device__ __forceinline__ void store_float(void* data, Scalar, int64_t i, double value) {
  static_cast<double*>(data)[i] = value;
}
__device__ __forceinline__ void store_float(void* data, Scalar type, int64_t i, float value) {
  if (type == Scalar::kFloat32) {
    static_cast<float*>(data)[i] = value;
  } else if (type == Scalar::kBFloat16) {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
  } else {
    static_cast<__half*>(data)[i] = __float2half_rn(value);
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
