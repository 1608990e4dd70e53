// Epilogues of "nca" on CUDA, see NcaStats and NcaCoefs in contrast/forms.py.
#pragma once

#include "pair_terms.cuh"

namespace metricseg::contrast {

// The LSE over negatives and that over positives.
template <class P>
struct NcaPhase {
  using T = typename P::T;
  static constexpr int kSums = 4, kBlocks = 1;
  static constexpr bool kKeeps = false;
  T scale;  // 1 / temperature, in the base of `power`

  static __device__ T start(int k) { return k % 2 == 0 ? -kInfinity<T> : T(0); }

  struct State {
    const NcaPhase& phase;
    Lse<T> lses[4];  // 2 row + which; of an array of arrays, nvcc 13.0 initializes the first one only

    template <bool kMasked>
    __device__ __forceinline__ void tile(const T (&s)[P::kColumns / 8][4], const Pairs<P>& pairs) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int which = 0; which < (kMasked ? 2 : 1); ++which) {
          add_lse<kMasked>(lses[2 * i + which], s, i, pairs, phase.scale, [&](int column) {
            bool positive, negative;
            pairs.masks(i, column, positive, negative);
            return which == 0 ? negative : positive;
          });
        }
      }
    }
    __device__ __forceinline__ void finish(int i, T (&sums)[kSums]) {
#pragma unroll
      for (int which = 0; which < 2; ++which) {
        Lse<T>& lse = lses[2 * i + which];
        join_quad(lse, phase.scale);
        sums[2 * which] = lse.row_max;
        sums[2 * which + 1] = lse.exps;
      }
    }
  };
  __device__ __forceinline__ State begin(const Pairs<P>&) const { return {*this, {}}; }
};

enum NcaCoef { kStep, kNegativeMax, kNegativeLse, kPositiveMax, kPositiveLse };

// W of the one side that has coefficients, or of both.
template <class P>
struct NcaWeights {
  using T = typename P::T;
  static constexpr bool kDistances = false;
  T scale;             // in the base of `power`
  bool rows, columns;  // which have coefficients

  template <bool kMasked>
  __device__ __forceinline__ void weigh(T (&s)[P::kColumns / 8][4], const Pairs<P>& pairs) const {
#pragma unroll
    for (int n = 0; n < P::kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = Pairs<P>::column(n, e % 2), i = e / 2;
        bool positive = false, negative = true;
        if (kMasked) pairs.masks(i, column, positive, negative);
        const T v = s[n][e];
        T w = 0;
        const auto add = [&](const auto& coef) {
          const T row_max = positive ? coef(kPositiveMax) : coef(kNegativeMax);
          const T lse = positive ? coef(kPositiveLse) : coef(kNegativeLse);
          const T share = coef(kStep) * power((v - row_max) * scale - in_base(lse));
          if (positive || negative) w += positive ? -share : share;
        };
        if (rows) add([&](int k) { return pairs.coefs[i][k]; });
        if (columns) add([&](int k) { return pairs.coef(k, column); });
        s[n][e] = w;
      }
    }
  }
};

}  // namespace metricseg::contrast
