// Strided runs of any floating type, read into and written from the accumulator type. Rounds to nearest even. No branch
// depends on a value, so that the loops become vector code without hardware conversions.
#pragma once

#include "../tensor_map.h"
#include "lanes.h"

namespace metricseg {
namespace METRICSEG_SIMD {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

METRICSEG_HD float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

METRICSEG_HD uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

METRICSEG_HD double widen(double value) { return value; }
METRICSEG_HD float widen(float value) { return value; }
METRICSEG_HD float widen(BFloat16 value) { return as_float(static_cast<uint32_t>(value.bits) << 16); }
METRICSEG_HD float widen(Float16 value) {
  const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  // a product by 2^112 moves the exponent's bias, subnormals included; infinity and NaN need the top exponent
  const float scaled = as_float(magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
  return as_float(as_bits(scaled) | special | static_cast<uint32_t>(value.bits & 0x8000u) << 16);
}

METRICSEG_HD void narrow(double value, double* out) { *out = value; }
METRICSEG_HD void narrow(float value, float* out) { *out = value; }
METRICSEG_HD void narrow(float value, BFloat16* out) {
  const uint32_t bits = as_bits(value);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  out->bits = static_cast<uint16_t>(value == value ? rounded >> 16 : 0x7fc0u);
}
METRICSEG_HD void narrow(float value, Float16* out) {
  const uint32_t bits = as_bits(value), magnitude = bits & 0x7fffffffu;
  // normal results: the bias moves by 112, the 13 bits that go are rounded
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
  // below 2^-14: adding 1/2 lines the digits up with 2^-24
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // rounds to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;   // NaN
  out->bits = static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

// f(S*) with the type that is stored; fp64 goes with fp64 only.
template <typename T, typename F>
METRICSEG_HD void with_storage(Type type, const F& f) {
  if constexpr (sizeof(T) == sizeof(double)) {
    f(static_cast<double*>(nullptr));
  } else if (type == Type::bf16) {
    f(static_cast<BFloat16*>(nullptr));
  } else if (type == Type::f16) {
    f(static_cast<Float16*>(nullptr));
  } else {
    f(static_cast<float*>(nullptr));
  }
}

// out[i] = p[i stride], i < n
template <typename S, typename T>
inline void read_as(const S* p, int64_t stride, int64_t n, T* out) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(widen(p[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(widen(p[i * stride]));
  }
}

// p[i stride] = in[i], i < n
template <typename S, typename T>
inline void write_as(const T* in, int64_t stride, int64_t n, S* p) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) narrow(in[i], p + i);
  } else {
    for (int64_t i = 0; i < n; ++i) narrow(in[i], p + i * stride);
  }
}

// read, write: calls of their own, since their loops are long and used in many places.
template <typename T>
__attribute__((noinline)) void read(Type type, const char* p, int64_t stride, int64_t n, T* out) {
  with_storage<T>(
      type, [&](auto* stored) { read_as(reinterpret_cast<decltype(stored)>(const_cast<char*>(p)), stride, n, out); });
}

template <typename T>
__attribute__((noinline)) void write(Type type, const T* in, int64_t stride, int64_t n, char* p) {
  with_storage<T>(type, [&](auto* stored) { write_as(in, stride, n, reinterpret_cast<decltype(stored)>(p)); });
}

// Whether runs of n values of a map may go past the caches from p on.
template <typename T>
METRICSEG_HD bool streams(const Map& map, const char* p, int64_t n) {
  constexpr int64_t lanes = Lanes<T>::count;
  return map.streams && map.x == 1 && map.size == sizeof(T) && n % lanes == 0 &&
         reinterpret_cast<uintptr_t>(p) % (lanes * sizeof(T)) == 0;
}

// A run of pixels of a map.
template <typename T>
void write(const Map& map, const T* in, int64_t n, char* p) {
  if (!streams<T>(map, p, n)) return write(map.type, in, map.x, n, p);
  for (int64_t i = 0; i < n; i += Lanes<T>::count) Lanes<T>::load(in + i).stream(reinterpret_cast<T*>(p) + i);
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg
