// Epilogues of "negatives" and "all", see LseStats and LseCoefs in contrast/forms.py. Each pair costs one exponential in
// a sweep, two where it is positive. A tile is read, and by `weights` written, once: 4 bytes or 8 a pair, from the cache
// that the matrix product left it in.
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

template <typename T, bool kAll>
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

  const V scale;  // 1 / temperature

 public:
  static constexpr int kConstants = sizeof(Constants) / sizeof(double), kCoefs = Coefs::count, kStats = Stats::count;

  METRICSEG_HD Softmax(const row_pairs::Tile<T>& tile, int64_t r)
      : Base(tile, r), scale(T(1 / reinterpret_cast<const Constants*>(tile.constants)->temperature)) {}

  // complete rows: their stats from nothing, three sweeps of a row that stays in cache
  void rows() const {
    if (group < 0) return;
    const T row_max = largest(), lse = std::log(sum_exp(row_max));
    out[Stats::row_max] = row_max;
    out[Stats::lse] = lse;
    add_positives(row_max, lse, out + Stats::positives);
  }

  // adds sum exp(s - m / t) over the pairs of the denominator
  void sum() const {
    if (group >= 0) out[0] += sum_exp(coefs[Coefs::row_max]);
  }

  // adds the positives' count and sums
  void positives() const {
    if (group >= 0) add_positives(coefs[Coefs::row_max], coefs[Coefs::lse], out);
  }

  // "negatives":  W = b exp(s - m / t) on negatives, -a sigmoid(lse - s) on positives
  // "all":        W = b exp(s - m / t) on all but self, less a on positives
  void weights() const {
    const V zero(T(0));
    this->replace([&](int64_t j, bool negative) {
      const V v = product(j);
      const V push = exp_below_zero((v - V(coefs[Coefs::row_max])) * scale) * both(Coefs::negative, j);
      if (negative) return push;
      const Pairs p = pairs(j);
      if (kAll) return select(p.positive | p.negative, push, zero) - select(p.positive, both(Coefs::positive, j), zero);
      V pull =
          V(coefs[Coefs::positive]) * Logistic<T>(above(V(coefs[Coefs::row_max]), V(coefs[Coefs::lse]), v)).sigmoid;
      if (this->tile.y_coefs) {
        const V z = above(y_coef(Coefs::row_max, j), y_coef(Coefs::lse, j), v);
        pull = pull + y_coef(Coefs::positive, j) * Logistic<T>(z).sigmoid;
      }
      return select(p.negative, push, select(p.positive, -pull, zero));
    });
  }

 private:
  METRICSEG_HD Mask<T> in_denominator(int64_t j) const {
    const Pairs p = pairs(j);
    return kAll ? p.positive | p.negative : p.negative;
  }

  T largest() const {
    V m(-Base::kInfinity);
    visit([&](int64_t j, bool negative) {
      const V v = product(j);
      m = max(negative ? v : select(in_denominator(j), v, V(-Base::kInfinity)), m);
    });
    return row_pairs::METRICSEG_SIMD::largest_of(m);
  }

  // sum exp(s - m / t)
  T sum_exp(T row_max) const {
    V sum(T(0));
    visit([&](int64_t j, bool negative) {
      V e = exp_below_zero((product(j) - V(row_max)) * scale);
      if (!negative) e = select(in_denominator(j), e, V(T(0)));
      sum = sum + e;
      if (this->serves_columns()) this->add_to_columns(0, j, e);
    });
    return sum_of(sum);
  }

  // LSE - s
  METRICSEG_HD V above(V row_max, V lse, V product) const { return (row_max - product) * scale + lse; }

  // count, and sum softplus(LSE - s), sum sigmoid(LSE - s); for "all" sum (LSE - s)
  METRICSEG_HD void add_positives(T row_max, T lse, T* sums) const {
    const V zero(T(0)), one(T(1));
    V count = zero, total = zero, sigmoids = zero;
    visit(
        [&](int64_t j, bool) {
          const Mask<T> positive = pairs(j).positive;
          const V counted = select(positive, one, zero);
          count = count + counted;
          const auto terms = [&](V z, V& first, V& second) {
            if (kAll) {
              first = z, second = zero;
            } else {
              const Logistic<T> logistic(z);
              first = logistic.softplus, second = logistic.sigmoid;
            }
            first = select(positive, first, zero), second = select(positive, second, zero);
          };
          V first, second;
          terms(above(V(row_max), V(lse), product(j)), first, second);
          total = total + first;
          sigmoids = sigmoids + second;
          if (!this->serves_columns()) return;
          terms(above(y_coef(Coefs::row_max, j), y_coef(Coefs::lse, j), product(j)), first, second);
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
    return this->tile.y_coefs ? V(coefs[coef]) + y_coef(coef, j) : V(coefs[coef]);
  }
};

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::contrast
