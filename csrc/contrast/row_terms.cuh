// What a form makes of the sums of its phases: the statistics of a row, its terms and their counts, and the coefficients
// of backward (contrast/forms.py has the formulas). A thread takes a row.
#pragma once

#include "pair_terms.cuh"
#include "params.h"

namespace metricseg::contrast {

// "negatives" and "all".
template <typename T>
struct SoftmaxRows {
  static constexpr int kStats = 5, kTerms = 1, kCoefs = 5, kSums = 5;  // sums of all phases
  T scale, scale_of_e, step_scale, c;  // 1 / temperature in the base of `power`; 1 / t; c / t; c
  bool all;
  const T *exponentials, *positives;  // sums [parts, 2, padded] and [parts, 3, padded]
  int parts, padded;

  static __device__ T absent(int k) { return k < 2 ? -kInfinity<T> : T(0); }
  static __device__ T idle(int k) { return k == 0 ? kInfinity<T> : T(0); }

  __device__ void stats(int64_t r, T (&out)[kStats]) const {
    const Lse<T> lse = joined(exponentials, parts, 2, padded, 0, r, scale);
    out[0] = lse.finite_max();
    out[1] = lse.log_sum();
    for (int k = 0; k < 3; ++k) {
      out[2 + k] = 0;
      for (int part = 0; part < parts; ++part) out[2 + k] += positives[(int64_t(part) * 3 + k) * padded + r];
    }
  }
  __device__ void terms(const T (&stats)[kStats], T (&terms)[kTerms], T (&counts)[kTerms]) const {
    terms[0] = c * stats[3] / (stats[2] > T(0) ? stats[2] : T(1));
    counts[0] = stats[2];
  }
  // the largest |W| of the row
  __device__ T coefs(const T (&stats)[kStats], const T (&grad)[kTerms], T bound, T (&out)[kCoefs]) const {
    for (int k = 0; k < kCoefs; ++k) out[k] = idle(k);
    // without a positive, or without a pair in its denominator, a row contributes no gradient
    if (!(stats[2] > T(0)) || stats[1] == -kInfinity<T>) return 0;
    const T step = grad[0] * step_scale, positive = step / stats[2], whole = all ? step : positive * stats[4];
    out[0] = stats[0];
    out[1] = whole * std::exp(-stats[1]);
    out[2] = positive;
    out[3] = stats[1];
    out[4] = out[1] * power((bound - stats[0]) * scale);
    const T a = std::fabs(positive), b = std::fabs(whole);
    return a > b ? a : b;
  }
};

template <typename T>
struct MarginRows {
  static constexpr int kStats = 4, kTerms = 2, kCoefs = 2, kSums = 4;
  const T* sums;  // [parts, 4, padded]
  int parts, padded;

  static __device__ T absent(int) { return 0; }
  static __device__ T idle(int) { return 0; }

  __device__ void stats(int64_t r, T (&out)[kStats]) const {
    for (int k = 0; k < kStats; ++k) {
      out[k] = 0;
      for (int part = 0; part < parts; ++part) out[k] += sums[(int64_t(part) * kStats + k) * padded + r];
    }
  }
  __device__ void terms(const T (&stats)[kStats], T (&terms)[kTerms], T (&counts)[kTerms]) const {
    for (int k = 0; k < kTerms; ++k) {
      terms[k] = stats[2 * k];
      counts[k] = stats[2 * k + 1];
    }
  }
  __device__ T coefs(const T (&)[kStats], const T (&grad)[kTerms], T, T (&out)[kCoefs]) const {
    out[0] = grad[0];
    out[1] = grad[1];
    return 0;
  }
};

template <typename T>
struct NcaRows {
  static constexpr int kStats = 4, kTerms = 1, kCoefs = 5, kSums = 4;
  T scale, scale_of_e;  // 1 / temperature in the base of `power`; 1 / t
  const T* sums;        // [parts, 4, padded]
  int parts, padded;

  static __device__ T absent(int) { return -kInfinity<T>; }
  static __device__ T idle(int k) { return k == 1 || k == 3 ? kInfinity<T> : T(0); }

  __device__ void stats(int64_t r, T (&out)[kStats]) const {
    for (int which = 0; which < 2; ++which) {
      const Lse<T> lse = joined(sums, parts, 4, padded, 2 * which, r, scale);
      out[2 * which] = lse.finite_max();
      out[2 * which + 1] = lse.log_sum();
    }
  }
  // whether the row has both kinds of pairs; the difference of their LSEs
  __device__ bool ratio(const T (&stats)[kStats], T& ratio) const {
    ratio = (stats[0] - stats[2]) * scale_of_e + stats[1] - stats[3];
    return stats[1] != -kInfinity<T> && stats[3] != -kInfinity<T>;
  }
  __device__ void terms(const T (&stats)[kStats], T (&terms)[kTerms], T (&counts)[kTerms]) const {
    T z;
    terms[0] = ratio(stats, z) ? (z > T(0) ? z : z != z ? z : T(0)) + std::log1p(std::exp(-std::fabs(z))) : T(0);
    counts[0] = stats[3] == -kInfinity<T> ? T(0) : T(1);
  }
  __device__ T coefs(const T (&stats)[kStats], const T (&grad)[kTerms], T, T (&out)[kCoefs]) const {
    T z;
    const bool live = ratio(stats, z);
    for (int k = 0; k < kCoefs; ++k) out[k] = live && k > 0 ? stats[k - 1] : idle(k);
    if (!live) return 0;
    const T e = std::exp(-std::fabs(z));
    out[0] = grad[0] * (z >= T(0) ? T(1) : e) / (T(1) + e) * scale_of_e;
    return std::fabs(out[0]);
  }
};

// Outputs of forward: stats in the order of the work, the others in that of the caller.
template <typename T>
struct FinishOut {
  Rows<T> rows;
  T *stats, *terms, *counts;  // terms [A, n], or [n] if reduce
  bool reduce;
  T* partial;  // [blocks, n]
};

constexpr int kFinishThreads = 512;

template <typename T, class RowTerms>
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(RowTerms form, FinishOut<T> out) {
  constexpr int N = RowTerms::kTerms, S = RowTerms::kStats;
  T sums[N] = {};
  // a block takes every gridDim-th stretch of rows, so that few blocks have sums to add up
  for (int64_t base = blockIdx.x * int64_t(kFinishThreads); base < out.rows.count;
       base += gridDim.x * int64_t(kFinishThreads)) {
    const int64_t r = base + threadIdx.x;
    if (r >= out.rows.count) continue;
    T stats[S], terms[N] = {}, counts[N] = {};
    if (out.rows.groups[r] >= 0) {
      form.stats(r, stats);
      form.terms(stats, terms, counts);
    } else {
      for (int k = 0; k < S; ++k) stats[k] = RowTerms::absent(k);
    }
    for (int k = 0; k < S; ++k) out.stats[r * S + k] = stats[k];
    for (int k = 0; k < N; ++k) {
      if (out.rows.factors) terms[k] *= out.rows.factors[r];
      out.counts[out.rows.order[r] * N + k] = counts[k];
      sums[k] += terms[k];
      if (!out.reduce) out.terms[out.rows.order[r] * N + k] = terms[k];
    }
  }
  if (!out.reduce) return;
  for (int k = 0; k < N; ++k) {
    const T sum = block_sum(sums[k]);
    if (threadIdx.x == 0) (gridDim.x > 1 ? out.partial + blockIdx.x * N : out.terms)[k] = sum;
  }
}

template <typename T>
__global__ void add_partial_kernel(const T* partial, int blocks, int count, T* terms) {
  if (static_cast<int>(threadIdx.x) >= count) return;
  T sum = 0;
  for (int b = 0; b < blocks; ++b) sum += partial[b * count + threadIdx.x];
  terms[threadIdx.x] = sum;
}

// One block: the counts are few beside the pairs.
template <typename T>
__global__ void __launch_bounds__(kFinishThreads) mean_kernel(MeanParams<T> p) {
  T loss = 0;
  for (int k = 0; k < p.sums; ++k) {
    double total = 0;
    for (int64_t i = threadIdx.x; i < p.rows; i += kFinishThreads) {
      double count = p.counts[i * p.sums + k];
      if (p.by_row && count > 0) count = p.weights ? load_float<double>(p.weights, i * p.weights.x) : 1.0;
      total += count;
    }
    total = block_sum(total);
    const T divisor = total > 0 ? static_cast<T>(total) : T(1);
    loss += p.terms[k] / divisor;
    if (threadIdx.x != 0) continue;
    p.totals[k] = total;
    p.divisors[k] = divisor;
  }
  if (threadIdx.x == 0) *p.loss = loss;
}

// Inputs of backward, and what it leaves for the gradient's kernel.
template <typename T>
struct CoefsIn {
  Rows<T> rows;
  const T *stats, *grad_terms;
  bool reduced;  // grad_terms are [n], the same for all rows
  Side<T> x, y;
  T scale_of_e, spread;        // 1 / t; the range of exponents for which one bound serves all rows
  T *coefs, *bound, *largest;  // [kCoefs, padded]; the bound of |<x, y>| and 1 if it serves all; [blocks]
};

// The largest of values [count], in every thread of the block.
template <typename T>
__device__ __forceinline__ T largest_of(const T* values, int count) {
  T largest[1] = {};
  for (int i = threadIdx.x; i < count; i += blockDim.x) largest[0] = values[i] > largest[0] ? values[i] : largest[0];
  block_max(largest);
  return largest[0];
}

template <typename T, class RowTerms>
__global__ void __launch_bounds__(kThreads) coefs_kernel(RowTerms form, CoefsIn<T> in) {
  constexpr int N = RowTerms::kTerms, S = RowTerms::kStats, C = RowTerms::kCoefs;
  const T bound = std::sqrt(largest_of(in.x.top, in.x.tiles)) * std::sqrt(largest_of(in.y.top, in.y.tiles));
  T spread = T(2) * in.scale_of_e * bound;
  if (in.y.range) spread += largest_of(in.y.range, in.y.tiles);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    in.bound[0] = bound;
    in.bound[1] = spread <= in.spread ? T(1) : T(0);
  }
  const int64_t r = blockIdx.x * int64_t(kThreads) + threadIdx.x;
  T largest[1] = {};
  if (r < in.x.padded) {
    T coefs[C];
    for (int k = 0; k < C; ++k) coefs[k] = RowTerms::idle(k);
    if (r < in.rows.count && in.rows.groups[r] >= 0) {
      T stats[S], grad[N];
      for (int k = 0; k < S; ++k) stats[k] = in.stats[r * S + k];
      for (int k = 0; k < N; ++k) {
        grad[k] = in.grad_terms[in.reduced ? k : in.rows.order[r] * N + k];
        if (in.rows.factors) grad[k] *= in.rows.factors[r];
      }
      largest[0] = form.coefs(stats, grad, bound, coefs);
    }
    for (int k = 0; k < C; ++k) in.coefs[k * int64_t(in.x.padded) + r] = coefs[k];
  }
  block_max(largest);
  if (threadIdx.x == 0) in.largest[blockIdx.x] = largest[0];
}

}  // namespace metricseg::contrast
