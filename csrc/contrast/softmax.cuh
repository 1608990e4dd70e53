// Epilogues of "negatives" and "all" on CUDA, see LseStats and LseCoefs in contrast/forms.py. A pair costs one
// exponential in each phase; in the gradient one if one bound serves all rows, else one for each side with coefficients.
// A pair counts w_j times in the sums of its row, and w_i times in those of its column. Absent coefficients are 0.
#pragma once

#include "pair_terms.cuh"

namespace metricseg::contrast {

// sum w exp((s - row_max) / t) over the denominator
template <class P>
struct LsePhase {
  using T = typename P::T;
  static constexpr int kSums = 2, kBlocks = 2;
  static constexpr bool kKeeps = true;
  T scale;  // 1 / temperature, in the base of `power`
  bool all;

  static __device__ T start(int k) { return k == 0 ? -kInfinity<T> : T(0); }

  struct State {
    const LsePhase& phase;
    Lse<T> lse[2];

    template <bool kMasked>
    __device__ __forceinline__ void tile(const T (&s)[P::kColumns / 8][4], const Pairs<P>& pairs) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        add_lse<kMasked>(lse[i], s, i, pairs, phase.scale, [&](int column) {
          bool positive, negative;
          pairs.masks(i, column, positive, negative);
          return negative || (phase.all && positive);
        });
      }
    }
    __device__ __forceinline__ void finish(int i, T (&sums)[kSums]) {
      join_quad(lse[i], phase.scale);
      sums[0] = lse[i].row_max;
      sums[1] = lse[i].exps;
    }
  };
  __device__ __forceinline__ State begin(const Pairs<P>&) const { return {*this, {}}; }
};

// Sums over the positives of a row: their weights, their terms, the sigmoids.
template <class P>
struct PositivesPhase {
  using T = typename P::T;
  static constexpr int kSums = 3, kBlocks = 2;
  static constexpr bool kKeeps = false;
  T scale, scale_of_e;  // in the base of `power`, and 1 / temperature
  bool all;
  const T* sums;  // [parts, 2, padded] of LsePhase
  int parts, padded;

  static __device__ T start(int) { return 0; }

  struct State {
    const PositivesPhase& phase;
    T row_max[2], lse[2];
    T values[2][kSums] = {};

    template <bool kMasked>
    __device__ __forceinline__ void tile(const T (&s)[P::kColumns / 8][4], const Pairs<P>& pairs) {
      if constexpr (kMasked) {  // the others hold no positives
#pragma unroll
        for (int n = 0; n < P::kColumns / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int column = Pairs<P>::column(n, e % 2), i = e / 2;
            bool positive, negative;
            pairs.masks(i, column, positive, negative);
            const T weight = pairs.weight(column);
            if (!positive || !(weight > T(0))) continue;
            const T z = (row_max[i] - s[n][e]) * phase.scale_of_e + lse[i];
            values[i][0] += weight;
            if (phase.all) {
              values[i][1] += weight * z;
              continue;
            }
            const T small = power(in_base(-std::fabs(z))), one = T(1);
            values[i][1] += weight * ((z > T(0) ? z : z != z ? z : T(0)) + std::log1p(small));
            values[i][2] += weight * (z >= T(0) ? one : small) / (one + small);
          }
        }
      }
    }
    __device__ __forceinline__ void finish(int i, T (&out)[kSums]) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) out[k] = group_sum(values[i][k], 4);
    }
  };
  __device__ __forceinline__ State begin(const Pairs<P>& pairs) const {
    State state{*this, {}, {}};
    for (int i = 0; i < 2; ++i) {
      const Lse<T> own = joined(sums, parts, 2, padded, 0, pairs.row + 8 * i, scale);
      state.row_max[i] = own.finite_max();
      state.lse[i] = own.log_sum();
    }
    return state;
  }
};

enum LseCoef { kRowMax, kNegative, kPositive, kLse, kShifted };

// W of both sides that have coefficients.
template <class P>
struct SoftmaxWeights {
  using T = typename P::T;
  static constexpr bool kDistances = false;
  T scale;  // in the base of `power`
  bool all;
  const T* bound;  // of |<x, y>|, and 1 if it serves all rows

  struct Row {
    T row_max, negative, positive, lse, shifted;
  };

  template <bool kMasked>
  __device__ __forceinline__ void weigh(T (&s)[P::kColumns / 8][4], const Pairs<P>& pairs) const {
    const auto row_of = [](const auto& coef) {
      return Row{coef(kRowMax), coef(kNegative), coef(kPositive), coef(kLse), coef(kShifted)};
    };
    const T shift = bound[0] * scale;
    const bool fixed = bound[1] != T(0);
#pragma unroll
    for (int n = 0; n < P::kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = Pairs<P>::column(n, e);
        const Row other = row_of([&](int k) { return pairs.coef(k, column); });
        const T weight = pairs.weight(column);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Row own = row_of([&](int k) { return pairs.coefs[i][k]; });
          const T v = s[n][2 * i + e], row_weight = pairs.weights[i];
          T w;
          if (fixed) {
            w = (weight * own.shifted + row_weight * other.shifted) * power(v * scale - shift);
          } else {
            w = weight * own.negative * exponential(v, own.row_max) +
                row_weight * other.negative * exponential(v, other.row_max);
          }
          if (kMasked) {
            bool positive, negative;
            pairs.masks(i, column, positive, negative);
            if (!negative && !(all && positive)) w = T(0);
            if (positive) w -= weight * pull(v, own) + row_weight * pull(v, other);
          }
          s[n][2 * i + e] = w;
        }
      }
    }
  }

 private:
  // a column of weight 0 may be above the maximum
  __device__ __forceinline__ T exponential(T v, T row_max) const {
    const T x = (v - row_max) * scale;
    return power(x > T(0) ? T(0) : x);
  }
  __device__ __forceinline__ T pull(T v, const Row& row) const {
    if (all) return row.positive;
    return row.positive / (T(1) + power((v - row.row_max) * scale - in_base(row.lse)));
  }
};

}  // namespace metricseg::contrast
