// Storage types chosen at run time: one instantiation of a kernel serves all of them.
#pragma once

#include <cstring>

#include "../tensor_map.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace metricseg {

template <typename To, typename From>
__device__ __forceinline__ To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

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

// f(data of the map, as a pointer to the stored type). If T is double, storage is double; if T is float, it is one of
// the others. So the pairs that cannot occur are not compiled.
template <typename T, typename F>
__device__ __forceinline__ void with_storage(const Map& map, F f) {
  if constexpr (sizeof(T) == sizeof(double)) {
    f(map.as<double>());
  } else if (map.type == Type::f32) {
    f(map.as<float>());
  } else if (map.type == Type::bf16) {
    f(map.as<__nv_bfloat16>());
  } else {
    f(map.as<__half>());
  }
}

// The value at an offset in elements, of any floating type.
template <typename T>
__device__ __forceinline__ T load_float(const Map& map, int64_t i) {
  switch (map.type) {
    case Type::f64:
      return widen<T>(map.as<double>()[i]);
    case Type::f32:
      return widen<T>(map.as<float>()[i]);
    case Type::bf16:
      return widen<T>(map.as<__nv_bfloat16>()[i]);
    default:
      return widen<T>(map.as<__half>()[i]);
  }
}

}  // namespace metricseg
