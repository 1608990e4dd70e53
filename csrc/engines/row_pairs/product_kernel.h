// Matrix product of the pair stream: from torch's tensors to a Product, its units of work to torch's threads. One
// source file of the extension includes this header; csrc/simd_*.cpp define the workers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "../../common/host/library.h"
#include "../../common/host/parallel.h"
#include "../../common/host/simd_choice.h"
#include "../../common/host/torch_map.h"
#include "product_run.h"
#include "tile.h"

namespace metricseg::row_pairs {

template <typename T>
const Loops<T>& product_loops() {
  static const Loops<T>& chosen = METRICSEG_WIDEST_OF(T);
  return chosen;
}

template <typename T>
void launch_product(const Tensor& a, const Tensor& b, const Optional& b_steps, const Optional& b_columns, double sign,
                    bool accumulate, const Tensor& out) {
  Product<T> p{};
  p.a = static_cast<const T*>(a.const_data_ptr());
  p.a_row = a.stride(0);
  p.a_step = a.stride(1);
  p.b = static_cast<const T*>(b.const_data_ptr());
  p.b_step = b.stride(0);
  p.b_column = b.stride(1);
  if (b_steps) p.b_steps = static_cast<const int64_t*>(b_steps->const_data_ptr());
  if (b_columns) p.b_columns = static_cast<const int64_t*>(b_columns->const_data_ptr());
  p.out = static_cast<T*>(out.mutable_data_ptr());
  p.out_row = out.stride(0);
  p.M = a.size(0);
  p.N = out.size(1);
  p.K = a.size(1);
  p.sign = static_cast<T>(sign);
  p.accumulate = accumulate;
  run_product(product_loops<T>(), p, [](int64_t n, int64_t grain, const auto& f) { parallel(n, grain, f); });
}

// b_steps, b_columns: rows and columns of b to take, in their order, all in range; else each once.
inline void multiply_kernel(Tensor a, Tensor b, Optional b_steps, Optional b_columns, double sign, bool accumulate,
                            Tensor out) {
  const Type type = type_of(out);
  STD_TORCH_CHECK((type == Type::f32 || type == Type::f64) && type_of(a) == type && type_of(b) == type,
                  "metricseg: row_pairs_multiply_kernel takes fp32 or fp64, the same in all");
  const auto taken = [](const Optional& places, int64_t size) { return places ? places->numel() : size; };
  STD_TORCH_CHECK(
      a.size(1) == taken(b_steps, b.size(0)) && out.size(0) == a.size(0) && out.size(1) == taken(b_columns, b.size(1)),
      "metricseg: row_pairs_multiply_kernel takes [M, K], [K, N] and [M, N]");
  STD_TORCH_CHECK(out.stride(1) == 1 || out.size(1) <= 1, "metricseg: each row of out must be contiguous");
  STD_TORCH_CHECK(accumulate || sign == 1, "metricseg: a sign goes with accumulate");
  dispatch_accumulator(
      type, [&](auto zero) { launch_product<decltype(zero)>(a, b, b_steps, b_columns, sign, accumulate, out); });
}

inline void mirror_kernel(Tensor s, int64_t stripe) {
  STD_TORCH_CHECK(s.dim() == 2 && s.size(0) == s.size(1) && s.stride(1) == 1,
                  "metricseg: a square with contiguous rows");
  STD_TORCH_CHECK(stripe > 0 && stripe % kMaxLanes == 0, "metricseg: stripes of a multiple of ", kMaxLanes);
  dispatch_accumulator(type_of(s), [&](auto zero) {
    using T = decltype(zero);
    run_mirror(product_loops<T>(), static_cast<T*>(s.mutable_data_ptr()), s.stride(0), s.size(0), stripe,
               [](int64_t n, int64_t grain, const auto& f) { parallel(n, grain, f); });
  });
}

// Whether the processor is AMD's with AVX-512, and METRICSEG_SIMD doesn't narrow the vectors.
inline bool is_amd_avx512([[maybe_unused]] Tensor on_cpu) {
#if defined(__x86_64__)
  return &product_loops<float>() == &avx512_workers.f32 && __builtin_cpu_is("amd");
#else
  return false;
#endif
}

}  // namespace metricseg::row_pairs

METRICSEG_LIBRARY_IMPL(CPU, m) {
  m.impl("row_pairs_multiply_kernel", TORCH_BOX(&metricseg::row_pairs::multiply_kernel));
  m.impl("row_pairs_mirror_kernel", TORCH_BOX(&metricseg::row_pairs::mirror_kernel));
  m.impl("row_pairs_is_amd_avx512", TORCH_BOX(&metricseg::row_pairs::is_amd_avx512));
}
