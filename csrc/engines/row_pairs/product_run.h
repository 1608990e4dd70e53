// Units of work of a matrix product. A is packed in blocks of rows, a run of K at a time; a unit multiplies some blocks
// with one panel of columns of B, which it packs by itself. Each element is summed by one thread, in an order that
// depends on K alone: the number of threads changes no bit.
#pragma once

#include <algorithm>

#include "../../common/host/memory.h"
#include "product.h"

namespace metricseg::row_pairs {

constexpr int64_t kUnitRows = 256;               // rows of a unit: their packed values take 256 KB, sized to fit in L2
constexpr int64_t kRunBytes = int64_t{2} << 20;  // of packed A: WY is 1.07 times as fast as with 4 MB

// A product whose packed rows fit in kRunBytes for one step of K.
template <typename T, typename Parallel>
void run_rows(const Loops<T>& loops, Product<T> p, const Parallel& parallel) {
  if (p.K == 0 && !p.accumulate) {
    for (int64_t r = 0; r < p.M; ++r) std::fill_n(p.out + r * p.out_row, p.N, T(0));
  }
  const Sizes sizes = loops.sizes(p.M);
  const int64_t blocks = ceil_div(p.M, sizes.block_rows), panels = ceil_div(p.N, sizes.columns);
  const int64_t units = ceil_div(blocks, std::max<int64_t>(kUnitRows / sizes.block_rows, 1));
  const int64_t step_values = blocks * sizes.block_values, unit = ceil_div(blocks, units);
  const int64_t most = std::max<int64_t>(kRunBytes / (step_values * static_cast<int64_t>(sizeof(T))), 1);
  const auto packed = aligned_values<T>(std::min(most, ceil_div(p.K, kDepth)) * step_values);
  p.packed = packed.get();
  for (p.begin = 0; p.begin < p.K; p.begin = p.end) {
    p.end = std::min(p.begin + most * kDepth, p.K);
    parallel(ceil_div(p.end - p.begin, kDepth) * blocks, 65536 / sizes.block_values + 1, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) loops.pack(p, i / blocks, i % blocks);
    });
    const int64_t work = unit * sizes.block_rows * sizes.columns * (p.end - p.begin);
    parallel(ceil_div(blocks, unit) * panels, (1 << 20) / work + 1, [&](int64_t i, int64_t end) {
      const auto panel = aligned_values<T>(kDepth * sizes.columns);
      for (; i < end; ++i) {
        const int64_t first = i / panels * unit;
        loops.multiply(p, first, std::min(first + unit, blocks), i % panels * sizes.columns, panel.get());
      }
    });
  }
}

// parallel(n, grain, f): f(begin, end) on ranges that cover [0, n)
template <typename T, typename Parallel>
void run_product(const Loops<T>& loops, const Product<T>& p, const Parallel& parallel) {
  constexpr int64_t most = kRunBytes / (kDepth * sizeof(T));
  for (int64_t row = 0; row < p.M && p.N > 0; row += most) {
    Product<T> part = p;
    part.a += row * p.a_row;
    part.out += row * p.out_row;
    part.M = std::min(p.M - row, most);
    run_rows(loops, part, parallel);
  }
}

// s [N, N] = its transpose below the diagonal's squares of `stripe` values.
template <typename T, typename Parallel>
void run_mirror(const Loops<T>& loops, T* s, int64_t row, int64_t N, int64_t stripe, const Parallel& parallel) {
  const int64_t unit = 16, units = ceil_div(N - stripe, unit);
  const auto mirror = [&](int64_t u) {
    const int64_t begin = stripe + u * unit;
    loops.mirror(s, row, begin / stripe * stripe, begin, std::min(begin + unit, N));
  };
  // columns further on have more rows before them: one from each end
  parallel(ceil_div(units, 2), 1, [&](int64_t u, int64_t end) {
    for (; u < end; ++u) {
      mirror(u);
      if (units - 1 - u > u) mirror(units - 1 - u);
    }
  });
}

}  // namespace metricseg::row_pairs
