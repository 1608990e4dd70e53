// Epilogue of "margin" on CUDA, see MarginStats and MarginCoefs in contrast/forms.py: d^2 = |x|^2 + |y|^2 - 2 <x, y>.
#pragma once

#include "pair_terms.cuh"

namespace metricseg::contrast {

template <class P>
struct Margin {
  using T = typename P::T;
  T margin, positive_margin;
  bool squared;  // power 2
  bool nonzero;  // counts the terms above 0

  // d^2, 0 if it may be rounding alone
  __device__ __forceinline__ T squared_distance(T s, const Pairs<P>& pairs, int i, int column) const {
    const T squares = pairs.squares[i] + pairs.field(Pairs<P>::kSquares, column), d2 = squares - T(2) * s;
    return d2 <= T(8) * std::numeric_limits<T>::epsilon() * squares ? T(0) : d2;
  }
  __device__ __forceinline__ T hinge(T v) const {
    const T r = v < T(0) ? T(0) : v;
    return squared ? r * r : r;
  }
  // p relu(v)^(p-1) / d, v in units of d
  __device__ __forceinline__ T slope(T v, T inverse) const {
    if (squared) return T(2) * (v < T(0) ? T(0) : v);
    return v > T(0) ? inverse : T(0);
  }
};

template <class P>
struct MarginPhase : Margin<P> {
  using T = typename P::T;
  static constexpr int kSums = 4, kBlocks = 1;  // pull, pulled, push, pushed
  static constexpr bool kKeeps = false;         // pull, pulled, push, pushed

  static __device__ T start(int) { return 0; }

  struct State {
    const MarginPhase& phase;
    T values[2][kSums] = {};

    template <bool kMasked>
    __device__ __forceinline__ void tile(const T (&s)[P::kColumns / 8][4], const Pairs<P>& pairs) {
#pragma unroll
      for (int n = 0; n < P::kColumns / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int column = Pairs<P>::column(n, e % 2), i = e / 2;
          const T d = root(phase.squared_distance(s[n][e], pairs, i, column));
          bool positive = false, negative = true;
          if (kMasked) pairs.masks(i, column, positive, negative);
          if (!positive && !negative) continue;
          const T term = phase.hinge(positive ? d - phase.positive_margin : phase.margin - d);
          const T count = !phase.nonzero || term > T(0) ? T(1) : T(0), zero = T(0);
          values[i][0] += positive ? term : zero;
          values[i][1] += positive ? count : zero;
          values[i][2] += positive ? zero : term;
          values[i][3] += positive ? zero : count;
        }
      }
    }
    __device__ __forceinline__ void finish(int i, T (&out)[kSums]) {
#pragma unroll
      for (int k = 0; k < kSums; ++k) out[k] = group_sum(values[i][k], 4);
    }
  };
  __device__ __forceinline__ State begin(const Pairs<P>&) const { return {*this}; }
};

// W; the gradient is sum_j W_ij (x_i - y_j).
template <class P>
struct MarginWeights : Margin<P> {
  using T = typename P::T;
  static constexpr bool kDistances = true;

  template <bool kMasked>
  __device__ __forceinline__ void weigh(T (&s)[P::kColumns / 8][4], const Pairs<P>& pairs) const {
#pragma unroll
    for (int n = 0; n < P::kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = Pairs<P>::column(n, e % 2), i = e / 2;
        const T d2 = this->squared_distance(s[n][e], pairs, i, column);
        const T inverse = d2 < std::numeric_limits<T>::min() ? T(0) : inverse_root(d2);
        bool positive = false, negative = true;
        if (kMasked) pairs.masks(i, column, positive, negative);
        T w = 0;
        if (negative) {
          w = -(pairs.coefs[i][1] + pairs.coef(1, column)) * this->slope(this->margin * inverse - T(1), inverse);
        } else if (positive && inverse != T(0)) {
          w = (pairs.coefs[i][0] + pairs.coef(0, column)) *
              this->slope(T(1) - this->positive_margin * inverse, inverse);
        }
        s[n][e] = w;
      }
    }
  }
};

}  // namespace metricseg::contrast
