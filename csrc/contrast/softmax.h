// Epilogues of "negatives" and "all", see LseStats and LseCoefs in contrast/forms.py. Each pair costs one exponential in
// a sweep, two where it is positive. A tile is read, and by `weights` written, once: 4 bytes or 8 a pair, from the cache
// that the matrix product left it in. If kWeighted, a pair counts w_j times in the sums of its row, and w_i times in
// those of its column.
#pragma once

#include "../engines/row_pairs/row.h"

namespace metricseg::contrast {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

template <typename T>
struct Logistic {
  Lanes<T> softplus, sigmoid;

  // softplus(z) and sigmoid(z) from one exponential
  METRICSEG_HD explicit Logistic(Lanes<T> z) {
    using V = Lanes<T>;
    const V e = exp_below_zero(-fabs(z)), one(T(1));
    softplus = max(z, V(T(0))) + log1p(e);
    sigmoid = select(z >= V(T(0)), one, e) / (one + e);
  }
};

template <typename T, bool kAll, bool kWeighted>
class Softmax : row_pairs::METRICSEG_SIMD::Row<T> {
  using Base = row_pairs::METRICSEG_SIMD::Row<T>;
  using Base::group, Base::coefs, Base::out, Base::visit, Base::pairs, Base::product, Base::y_coef;
  using typename Base::Pairs, typename Base::V;

  struct Constants {
    double temperature, scale;
  };
  struct Stats {
    enum { row_max, lse, positives, loss_sum, sigmoid_sum, count };
  };
  struct Coefs {
    enum { row_max, negative, positive, lse, count };
  };

  const V scale;   // 1 / temperature
  const V weight;  // of this row as a column

 public:
  static constexpr int kConstants = sizeof(Constants) / sizeof(double), kCoefs = Coefs::count, kStats = Stats::count;

  METRICSEG_HD Softmax(const row_pairs::Tile<T>& tile, int64_t r)
      : Base(tile, r),
        scale(T(1 / reinterpret_cast<const Constants*>(tile.constants)->temperature)),
        weight(tile.x_weights ? tile.x_weights[r] : T(1)) {}

  // complete rows: their stats from nothing, three sweeps of a row that stays in cache
  void rows() const {
    if (group < 0) return;
    const T row_max = largest(), lse = std::log(sum_exp(row_max));
    out[Stats::row_max] = row_max;
    out[Stats::lse] = lse;
    add_positives(row_max, lse, out + Stats::positives);
  }

  // adds sum w exp(s - m / t) over the pairs of the denominator
  void sum() const {
    if (group >= 0) out[0] += sum_exp(coefs[Coefs::row_max]);
  }

  // adds the positives' weights and sums
  void positives() const {
    if (group >= 0) add_positives(coefs[Coefs::row_max], coefs[Coefs::lse], out);
  }

  // "negatives":  W = w b exp(s - m / t) on negatives, -w a sigmoid(lse - s) on positives
  // "all":        W = w b exp(s - m / t) on all but self, less w a on positives
  void weights() const {
    const V zero(T(0));
    this->replace([&](int64_t j, bool negative) {
      const V v = product(j);
      const V push = exponential(v, coefs[Coefs::row_max]) * both(Coefs::negative, j);
      if (negative) return push;
      const Pairs p = pairs(j);
      if (kAll) return select(p.positive | p.negative, push, zero) - select(p.positive, both(Coefs::positive, j), zero);
      V pull = in_row(V(coefs[Coefs::positive]), j) *
               Logistic<T>(above(V(coefs[Coefs::row_max]), V(coefs[Coefs::lse]), v)).sigmoid;
      if (this->tile.y_coefs) {
        const V z = above(y_coef(Coefs::row_max, j), y_coef(Coefs::lse, j), v);
        pull = pull + in_column(y_coef(Coefs::positive, j)) * Logistic<T>(z).sigmoid;
      }
      return select(p.negative, push, select(p.positive, -pull, zero));
    });
  }

 private:
  // what a pair adds to its row, and to its column
  METRICSEG_HD V in_row(V value, int64_t j) const { return kWeighted ? value * this->y_weight(j) : value; }
  METRICSEG_HD V in_column(V value) const { return kWeighted ? value * weight : value; }

  METRICSEG_HD Mask<T> in_denominator(int64_t j) const {
    const Pairs p = pairs(j);
    return kAll ? p.positive | p.negative : p.negative;
  }

  T largest() const {
    V m(-Base::kInfinity);
    visit([&](int64_t j, bool negative) {
      const V least(-Base::kInfinity);
      V v = product(j);
      if (kWeighted) v = select(this->y_weight(j) > V(T(0)), v, least);
      m = max(negative ? v : select(in_denominator(j), v, least), m);
    });
    return row_pairs::METRICSEG_SIMD::largest_of(m);
  }

  // exp(s - m / t); a column of weight 0 may be above the maximum
  METRICSEG_HD V exponential(V product, T row_max) const {
    V x = (product - V(row_max)) * scale;
    if (kWeighted) x = select(x > V(T(0)), V(T(0)), x);
    return exp_below_zero(x);
  }

  // sum w exp(s - m / t)
  T sum_exp(T row_max) const {
    V sum(T(0));
    visit([&](int64_t j, bool negative) {
      V e = exponential(product(j), row_max);
      if (!negative) e = select(in_denominator(j), e, V(T(0)));
      sum = sum + in_row(e, j);
      if (this->serves_columns()) this->add_to_columns(0, j, in_column(e));
    });
    return sum_of(sum);
  }

  // LSE - s
  METRICSEG_HD V above(V row_max, V lse, V product) const { return (row_max - product) * scale + lse; }

  // sum w, sum w softplus(LSE - s), sum w sigmoid(LSE - s); for "all" sum w (LSE - s)
  METRICSEG_HD void add_positives(T row_max, T lse, T* sums) const {
    const V zero(T(0)), one(T(1));
    V count = zero, total = zero, sigmoids = zero;
    visit(
        [&](int64_t j, bool) {
          const Mask<T> positive = pairs(j).positive;
          // weight, and both sums, of a pair in one direction
          const auto terms = [&](V z, V w, V& counted, V& first, V& second) {
            if (kAll) {
              first = z, second = zero;
            } else {
              const Logistic<T> logistic(z);
              first = logistic.softplus, second = logistic.sigmoid;
            }
            counted = select(positive, w, zero);
            if (kWeighted) {  // 0 where z is -inf, since all that it sums over weighs 0
              first = select(w > zero, first * w, zero), second = second * w;
            }
            first = select(positive, first, zero), second = select(positive, second, zero);
          };
          V counted, first, second;
          terms(above(V(row_max), V(lse), product(j)), in_row(one, j), counted, first, second);
          count = count + counted;
          total = total + first;
          sigmoids = sigmoids + second;
          if (!this->serves_columns()) return;
          const V z = above(y_coef(Coefs::row_max, j), y_coef(Coefs::lse, j), product(j));
          terms(z, in_column(one), counted, first, second);
          this->add_to_columns(0, j, counted);
          this->add_to_columns(1, j, first);
          this->add_to_columns(2, j, second);
        },
        false);
    sums[0] += sum_of(count);
    sums[1] += sum_of(total);
    sums[2] += sum_of(sigmoids);
  }

  // the row's share of a coefficient, and the column's where the tile serves both
  METRICSEG_HD V both(int coef, int64_t j) const {
    const V row = in_row(V(coefs[coef]), j);
    return this->tile.y_coefs ? row + in_column(y_coef(coef, j)) : row;
  }
};

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::contrast
