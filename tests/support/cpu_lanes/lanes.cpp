// The vector functions, conversions and matrix products of one width, on plain arrays, for test_cpu_lanes.py.
#include "../../../csrc/engines/row_pairs/product_run.h"
// host code above this line is compiled at the baseline
#include "../../../csrc/common/simd/simd_begin.h"

#include "../../../csrc/common/simd/convert.h"
#include "../../../csrc/common/simd/lanes.h"
#include "../../../csrc/engines/row_pairs/product_loops.h"

#include "../../../csrc/common/simd/simd_end.h"

#if METRICSEG_SIMD_BYTES == 64
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#elif METRICSEG_SIMD_BYTES == 32
#define TARGET __attribute__((target("avx2,fma")))
#else
#define TARGET
#endif

using namespace metricseg::METRICSEG_SIMD;
using V = Lanes<float>;

// out[i] = f(x[i]) for i < n, n a multiple of 16
#define EXPORT(name, call)                                         \
  extern "C" TARGET void name(const float* x, float* out, int n) { \
    for (int i = 0; i < n; i += V::count) {                        \
      const V v = V::load(x + i);                                  \
      (call).store(out + i);                                       \
    }                                                              \
  }

EXPORT(lanes_exp, exp(v))
EXPORT(lanes_exp_below_zero, exp_below_zero(v))
EXPORT(lanes_log1p, log1p(v))
EXPORT(lanes_square_root, pow(v, V(0.5f)))
EXPORT(lanes_fifth_power, pow(v, V(5.f)))
EXPORT(lanes_shift_down, shift<1>(v))
EXPORT(lanes_shift_up, shift<-1>(v))

extern "C" int lanes_count() { return V::count; }
extern "C" int lanes_run_here() {
#if METRICSEG_SIMD_BYTES == 64
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif METRICSEG_SIMD_BYTES == 32
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 1;
#endif
}
extern "C" void widen_bf16(const uint16_t* x, float* out, int n) {
  read_as(reinterpret_cast<const BFloat16*>(x), 1, n, out);
}
extern "C" void widen_f16(const uint16_t* x, float* out, int n) {
  read_as(reinterpret_cast<const Float16*>(x), 1, n, out);
}
extern "C" void narrow_bf16(const float* x, uint16_t* out, int n) {
  write_as(x, 1, n, reinterpret_cast<BFloat16*>(out));
}
extern "C" void narrow_f16(const float* x, uint16_t* out, int n) { write_as(x, 1, n, reinterpret_cast<Float16*>(out)); }

// out [M, N] = A B, or out += sign A B; strides: of A's rows and steps, B's steps and columns, out's rows
template <typename T>
void multiply_all(const T* a, const T* b, T* out, const int64_t (&shape)[3], const int64_t* strides, int sign,
                  int accumulate) {
  metricseg::row_pairs::Product<T> p{};
  p.a = a;
  p.b = b;
  p.out = out;
  p.M = shape[0];
  p.N = shape[1];
  p.K = shape[2];
  p.a_row = strides[0];
  p.a_step = strides[1];
  p.b_step = strides[2];
  p.b_column = strides[3];
  p.out_row = strides[4];
  p.sign = static_cast<T>(sign);
  p.accumulate = accumulate != 0;
  const auto serially = [](int64_t n, int64_t, const auto& f) { f(int64_t{0}, n); };
  run_product(metricseg::row_pairs::METRICSEG_SIMD::loops<T>, p, serially);
}

extern "C" void product_f32(const float* a, const float* b, float* out, int64_t M, int64_t N, int64_t K,
                            const int64_t* strides, int sign, int accumulate) {
  multiply_all(a, b, out, {M, N, K}, strides, sign, accumulate);
}
extern "C" void product_f64(const double* a, const double* b, double* out, int64_t M, int64_t N, int64_t K,
                            const int64_t* strides, int sign, int accumulate) {
  multiply_all(a, b, out, {M, N, K}, strides, sign, accumulate);
}
