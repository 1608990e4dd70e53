// Lanes<T>: as many T as one vector register of this region holds (see simd_begin.h), with the arithmetic of T, and
// the elementary functions that the losses need. Built on the compiler's own vector types, so it compiles for any
// processor. In fp32, against the true value, over the whole domain (tests/test_cpu_lanes.py measures it):
//   exp    1.2 ulp; results below 2^-126 are 0, x above 88.37 counts as 88.37; exp(-inf) = 0; NaN stays NaN
//   log    of a normal x > 0; NaN stays NaN
//   log1p  1.8 ulp for x >= 0
//   pow    2 (1 + |y log x|) ulp for x >= 0; x below 2^-126 counts as 0
// fp64 calls the library, lane by lane.
#pragma once

#include "../macros.h"

#ifndef METRICSEG_SIMD_REGION
#error "include this between simd_begin.h and simd_end.h"
#endif

namespace metricseg {
namespace METRICSEG_SIMD {

template <typename T>
struct Register;

template <>
struct Register<float> {
  typedef float Values __attribute__((vector_size(METRICSEG_SIMD_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(METRICSEG_SIMD_BYTES)));
};

template <>
struct Register<double> {
  typedef double Values __attribute__((vector_size(METRICSEG_SIMD_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(METRICSEG_SIMD_BYTES)));
};

template <typename T>
struct Mask {
  typename Register<T>::Bits bits;  // all ones or all zeros per lane

  friend METRICSEG_HD Mask operator&(Mask a, Mask b) { return {a.bits & b.bits}; }
  friend METRICSEG_HD Mask operator|(Mask a, Mask b) { return {a.bits | b.bits}; }
};

template <typename T>
struct Lanes {
  using Values = typename Register<T>::Values;
  using Bits = typename Register<T>::Bits;
  static constexpr int count = METRICSEG_SIMD_BYTES / sizeof(T);

  Values v;

  Lanes() = default;
  METRICSEG_HD explicit Lanes(Values values) : v(values) {}
  METRICSEG_HD explicit Lanes(T value) : v(value - Values{}) {}

  METRICSEG_HD static Lanes load(const T* p) {
    Lanes r;
    std::memcpy(&r.v, p, sizeof(Values));
    return r;
  }
  METRICSEG_HD void store(T* p) const { std::memcpy(p, &v, sizeof(Values)); }
  // Past the caches; p at a multiple of the vector's size.
  METRICSEG_HD void stream(T* p) const {
#if !defined(__x86_64__)
    store(p);
#elif METRICSEG_SIMD_BYTES > 16
    asm volatile("vmovntps %1, %0" : "=m"(*reinterpret_cast<Values*>(p)) : "v"(v));
#else
    asm volatile("movntps %1, %0" : "=m"(*reinterpret_cast<Values*>(p)) : "x"(v));
#endif
  }
  METRICSEG_HD T first() const { return v[0]; }
  METRICSEG_HD T last() const { return v[count - 1]; }

  friend METRICSEG_HD Lanes operator+(Lanes a, Lanes b) { return Lanes(a.v + b.v); }
  friend METRICSEG_HD Lanes operator-(Lanes a, Lanes b) { return Lanes(a.v - b.v); }
  friend METRICSEG_HD Lanes operator*(Lanes a, Lanes b) { return Lanes(a.v * b.v); }
  friend METRICSEG_HD Lanes operator/(Lanes a, Lanes b) { return Lanes(a.v / b.v); }
  friend METRICSEG_HD Lanes operator-(Lanes a) { return Lanes(-a.v); }
  friend METRICSEG_HD Mask<T> operator>(Lanes a, Lanes b) { return {a.v > b.v}; }
  friend METRICSEG_HD Mask<T> operator<(Lanes a, Lanes b) { return {a.v < b.v}; }
  friend METRICSEG_HD Mask<T> operator>=(Lanes a, Lanes b) { return {a.v >= b.v}; }
  friend METRICSEG_HD Mask<T> operator==(Lanes a, Lanes b) { return {a.v == b.v}; }
  friend METRICSEG_HD Mask<T> operator!=(Lanes a, Lanes b) { return {a.v != b.v}; }
};

template <typename T>
METRICSEG_HD Lanes<T> select(Mask<T> c, Lanes<T> a, Lanes<T> b) {
  return Lanes<T>(c.bits ? a.v : b.v);
}

// b if a is NaN.
template <typename T>
METRICSEG_HD Lanes<T> max(Lanes<T> a, Lanes<T> b) {
  return Lanes<T>(a.v > b.v ? a.v : b.v);
}

template <typename T>
METRICSEG_HD Lanes<T> fabs(Lanes<T> a) {
  return Lanes<T>(a.v < -a.v ? -a.v : a.v);
}

METRICSEG_HD Lanes<float> sqrt(Lanes<float> a) {
  for (int i = 0; i < Lanes<float>::count; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}

METRICSEG_HD Lanes<double> sqrt(Lanes<double> a) {
  for (int i = 0; i < Lanes<double>::count; ++i) a.v[i] = __builtin_sqrt(a.v[i]);
  return a;
}

// Lane i of the result is lane i + step of a, or 0 if a has none.
template <int step, typename T>
METRICSEG_HD Lanes<T> shift(Lanes<T> a) {
  constexpr int n = Lanes<T>::count;
#if defined(__clang__)
  Lanes<T> r(T(0));
  for (int i = 0; i < n; ++i) {
    if (i + step >= 0 && i + step < n) r.v[i] = a.v[i + step];
  }
  return r;
#else
  typename Lanes<T>::Bits source{};
  for (int i = 0; i < n; ++i) source[i] = i + step >= 0 && i + step < n ? i + step : n;
  return Lanes<T>(__builtin_shuffle(a.v, typename Lanes<T>::Values{}, source));
#endif
}

// Lane i of the result is lane index[i] of a.
template <typename T>
METRICSEG_HD Lanes<T> permute(Lanes<T> a, typename Lanes<T>::Bits index) {
#if defined(__clang__)
  Lanes<T> r;
  for (int i = 0; i < Lanes<T>::count; ++i) r.v[i] = a.v[index[i]];
  return r;
#else
  return Lanes<T>(__builtin_shuffle(a.v, index));
#endif
}

// Lane i of the result is lane index[i] of a and b together, of which b has the lanes from `count` on.
template <typename T>
METRICSEG_HD Lanes<T> permute(Lanes<T> a, Lanes<T> b, typename Lanes<T>::Bits index) {
#if defined(__clang__)
  constexpr int n = Lanes<T>::count;
  Lanes<T> r;
  for (int i = 0; i < n; ++i) r.v[i] = index[i] < n ? a.v[index[i]] : b.v[index[i] - n];
  return r;
#else
  return Lanes<T>(__builtin_shuffle(a.v, b.v, index));
#endif
}

template <typename T>
METRICSEG_HD T sum_of(Lanes<T> x) {
  if constexpr (Lanes<T>::count > 8) x = x + shift<8>(x);
  if constexpr (Lanes<T>::count > 4) x = x + shift<4>(x);
  if constexpr (Lanes<T>::count > 2) x = x + shift<2>(x);
  return (x + shift<1>(x)).first();
}

// One step of a transposition: of blocks of `step` lanes, the even ones of a and of b in turn, or with `odd` the odd
// ones.
template <int step, bool odd, typename T>
METRICSEG_HD Lanes<T> interleave(Lanes<T> a, Lanes<T> b) {
  constexpr int n = Lanes<T>::count;
#if defined(__clang__)
  Lanes<T> r;
  for (int i = 0; i < n; ++i) r.v[i] = i & step ? b.v[odd ? i : i - step] : a.v[odd ? i + step : i];
  return r;
#else
  typename Lanes<T>::Bits source{};
  for (int i = 0; i < n; ++i) source[i] = i & step ? n + (odd ? i : i - step) : (odd ? i + step : i);
  return Lanes<T>(__builtin_shuffle(a.v, b.v, source));
#endif
}

// Lane j of vector i becomes lane i of vector j.
template <int step, typename T>
METRICSEG_HD void transpose(Lanes<T> (&v)[Lanes<T>::count]) {
  constexpr int n = Lanes<T>::count;
  if constexpr (step < n) {
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      if (i & step) continue;
      const Lanes<T> a = v[i], b = v[i + step];
      v[i] = interleave<step, false>(a, b);
      v[i + step] = interleave<step, true>(a, b);
    }
    transpose<2 * step>(v);
  }
}

// exp for x <= 0, the argument of every softmax.
METRICSEG_HD Lanes<float> exp_below_zero(Lanes<float> x) {
  using L = Lanes<float>;
  // x = n ln 2 + r, |r| <= ln 2 / 2; adding 1.5 2^23 rounds to n and leaves it in the low bits
  const L shifted = x * L(1.44269504f) + L(12582912.f);
  const L n = shifted - L(12582912.f);
  const L r = (x - n * L(0x1.62e400p-1f)) - n * L(0x1.7f7d1cp-20f);
  // exp(r) = 1 + r + r^2 q(r), q minimax: 3.1e-9
  L q = L(0x1.6a23cep-10f) * r + L(0x1.123a20p-7f);
  q = q * r + L(0x1.5558f2p-5f);
  q = q * r + L(0x1.555492p-3f);
  q = q * r + L(0x1.fffffcp-2f);
  const L e = (q * r + L(1.f)) * r + L(1.f);
  // 2^n, in unsigned numbers: those of an x that is far below may overflow
  typedef uint32_t Word __attribute__((vector_size(METRICSEG_SIMD_BYTES)));
  const Word power = ((Word)shifted.v << 23) + 0x3f800000u;
  return select(x < L(-87.3365f), L(0.f), e * L((L::Values)power));
}

METRICSEG_HD Lanes<float> exp(Lanes<float> x) {
  const Lanes<float> top(88.37f);
  return exp_below_zero(select(x > top, top, x));
}

// log(y + rest) for a normal y > 0 and a rest below its last digit.
METRICSEG_HD Lanes<float> log_of_sum(Lanes<float> y, Lanes<float> rest) {
  using L = Lanes<float>;
  // y = 2^e m, m in [2/3, 4/3)
  const L::Bits exponent = ((L::Bits)y.v - 0x3f2aaaab) & ~0x7fffff;
  const L m((L::Values)((L::Bits)y.v - exponent));
  const L scale((L::Values)(0x3f800000 - exponent));  // 2^-e
  const L e(__builtin_convertvector(exponent >> 23, L::Values));
  const L f = (m - L(1.f)) + rest * scale;
  // log(1 + f) = 2 atanh(s), s = f / (2 + f), |s| <= 1/5:  f - s f + 2 s^3 (1/3 + s^2/5 + ...)
  const L s = f / (L(2.f) + f);
  const L s2 = s * s;
  L q = L(2.f / 9) * s2 + L(2.f / 7);
  q = q * s2 + L(2.f / 5);
  q = q * s2 + L(2.f / 3);
  const L log_f = f - s * (f - s2 * q);
  const L log_y = e * L(0x1.62e400p-1f) + (e * L(0x1.7f7d1cp-20f) + log_f);
  return select(y == y, log_y, y);
}

METRICSEG_HD Lanes<float> log(Lanes<float> x) { return log_of_sum(x, Lanes<float>(0.f)); }

METRICSEG_HD Lanes<float> log1p(Lanes<float> x) {
  const Lanes<float> one(1.f);
  const Lanes<float> y = one + x;
  return log_of_sum(y, x - (y - one));
}

METRICSEG_HD Lanes<float> pow(Lanes<float> x, Lanes<float> y) {
  const Lanes<float> zero(0.f), smallest(std::numeric_limits<float>::min());
  const Lanes<float> log_x = log_of_sum(x, zero);
  return exp(y * select(x < smallest, Lanes<float>(-std::numeric_limits<float>::infinity()), log_x));
}

#define METRICSEG_LANE_BY_LANE(call)               \
  for (int i = 0; i < Lanes<double>::count; ++i) { \
    x.v[i] = call;                                 \
  }                                                \
  return x
METRICSEG_HD Lanes<double> exp(Lanes<double> x) { METRICSEG_LANE_BY_LANE(std::exp(x.v[i])); }
METRICSEG_HD Lanes<double> exp_below_zero(Lanes<double> x) { return exp(x); }
METRICSEG_HD Lanes<double> log(Lanes<double> x) { METRICSEG_LANE_BY_LANE(std::log(x.v[i])); }
METRICSEG_HD Lanes<double> log1p(Lanes<double> x) { METRICSEG_LANE_BY_LANE(std::log1p(x.v[i])); }
METRICSEG_HD Lanes<double> pow(Lanes<double> x, Lanes<double> y) { METRICSEG_LANE_BY_LANE(std::pow(x.v[i], y.v[i])); }
#undef METRICSEG_LANE_BY_LANE

}  // namespace METRICSEG_SIMD
}  // namespace metricseg
