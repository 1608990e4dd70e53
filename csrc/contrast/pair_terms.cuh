// What the epilogues of the contrast family share on CUDA.
#pragma once

#include <limits>

#include "../engines/row_pairs/walk.cuh"

namespace metricseg::contrast {

using namespace row_pairs;

// Exponents of base 2 in fp32, of e in fp64: scale_of(x) once, then power(difference of scaled values).
__device__ __forceinline__ float in_base(float x) { return x * 1.4426950408889634f; }
__device__ __forceinline__ double in_base(double x) { return x; }
__device__ __forceinline__ float power(float x) { return power_of_2(x); }
__device__ __forceinline__ double power(double x) { return std::exp(x); }

// The square root and its inverse; in fp32 subnormal numbers count as 0.
__device__ __forceinline__ float root(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return std::sqrt(x);
#endif
}
__device__ __forceinline__ float inverse_root(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1 / std::sqrt(x);
#endif
}
__device__ __forceinline__ double root(double x) { return std::sqrt(x); }
__device__ __forceinline__ double inverse_root(double x) { return 1 / std::sqrt(x); }

template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// A log-sum-exp: exps = sum exp((s - row_max) / t).
template <typename T>
struct Lse {
  T row_max = -kInfinity<T>, exps = 0;

  // adds those of another part
  __device__ __forceinline__ void join(T other_max, T other_exps, T scale) {
    const T risen = other_max > row_max ? other_max : row_max;
    if (risen == -kInfinity<T>) return;
    exps = exps * power((row_max - risen) * scale) + other_exps * power((other_max - risen) * scale);
    row_max = risen;
  }
  // any number near the largest, and the log of the sum relative to it
  __device__ __forceinline__ T finite_max() const { return row_max == -kInfinity<T> ? T(0) : row_max; }
  __device__ __forceinline__ T log_sum() const { return std::log(exps); }
};

// The LSE of row r from the sums [parts, count, padded] of a phase, of which it is number `first`.
template <typename T>
__device__ __forceinline__ Lse<T> joined(const T* sums, int parts, int count, int padded, int first, int64_t r,
                                         T scale) {
  Lse<T> lse;
#pragma unroll(sizeof(T) == 4 ? 4 : 1)
  for (int part = 0; part < parts; ++part) {
    const T* const own = sums + (int64_t(part) * count + first) * padded + r;
    lse.join(own[0], own[padded], scale);
  }
  return lse;
}

// Adds the counted pairs of a tile to the LSE of row i; `counted(column)` says which are.
template <bool kMasked, class P, typename Counted>
__device__ __forceinline__ void add_lse(Lse<typename P::T>& lse, const typename P::T (&s)[P::kColumns / 8][4], int i,
                                        const Pairs<P>& pairs, typename P::T scale, const Counted& counted) {
  using T = typename P::T;
  T risen = lse.row_max;
  const auto value = [&](int n, int e) {
    const int column = Pairs<P>::column(n, e);
    const T v = s[n][2 * i + e];
    return (kMasked && !counted(column)) || (pairs.weighted && !(pairs.weight(column) > T(0))) ? -kInfinity<T> : v;
  };
#pragma unroll
  for (int n = 0; n < P::kColumns / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const T v = value(n, e);
      risen = v > risen ? v : risen;
    }
  }
  const T shift = risen == -kInfinity<T> ? T(0) : risen;
  T sum = 0;
#pragma unroll
  for (int n = 0; n < P::kColumns / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const T term = power((value(n, e) - shift) * scale);
      sum += pairs.weighted ? term * pairs.weight(Pairs<P>::column(n, e)) : term;
    }
  }
  lse.exps = lse.exps * power((lse.row_max - shift) * scale) + sum;
  lse.row_max = risen;
}

// The LSE of a row over the four lanes that share it.
template <typename T>
__device__ __forceinline__ void join_quad(Lse<T>& lse, T scale) {
  for (int step = 1; step < 4; step *= 2) {
    const T other_max = __shfl_xor_sync(kFullMask, lse.row_max, step);
    const T other_exps = __shfl_xor_sync(kFullMask, lse.exps, step);
    lse.join(other_max, other_exps, scale);
  }
}

}  // namespace metricseg::contrast
