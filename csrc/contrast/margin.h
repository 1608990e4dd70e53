// Epilogues of "margin", see MarginStats in contrast/forms.py. Its coefficients here are the squared norm of a row, and
// those of MarginCoefs. They are added over both sides, so those of columns that are not served are 0.
#pragma once

#include "../engines/row_pairs/row.h"

namespace metricseg::contrast {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

template <typename T>
class Margin : row_pairs::METRICSEG_SIMD::Row<T> {
  using Base = row_pairs::METRICSEG_SIMD::Row<T>;
  using Base::group, Base::coefs, Base::out, Base::pairs;
  using typename Base::Pairs, typename Base::V;

  struct Constants {
    double margin, positive_margin, power, nonzero;
  };
  struct Stats {
    enum { pull, pulled, push, pushed, count };
  };
  struct Coefs {
    enum { square, positive, negative, count };
  };

  const V margin, positive_margin;
  const bool squared;  // power 2
  const bool nonzero;  // count the terms above 0, not the pairs

  METRICSEG_HD Margin(const row_pairs::Tile<T>& tile, int64_t r, const Constants& c)
      : Base(tile, r),
        margin(T(c.margin)),
        positive_margin(T(c.positive_margin)),
        squared(c.power == 2),
        nonzero(c.nonzero != 0) {}

 public:
  static constexpr int kConstants = sizeof(Constants) / sizeof(double), kCoefs = Coefs::count, kStats = Stats::count;

  METRICSEG_HD Margin(const row_pairs::Tile<T>& tile, int64_t r)
      : Margin(tile, r, *reinterpret_cast<const Constants*>(tile.constants)) {}

  // adds the four stats
  void distances() const {
    if (group < 0) return;
    const V zero(T(0)), one(T(1));
    V sums[Stats::count] = {zero, zero, zero, zero};
    this->visit([&](int64_t j, bool negative) {
      const V d = distance(j);
      V values[Stats::count] = {zero, zero, powered(max(zero, margin - d)), one};
      V &pull = values[Stats::pull], &pulled = values[Stats::pulled];
      V &push = values[Stats::push], &pushed = values[Stats::pushed];
      if (nonzero) pushed = select(push > zero, one, zero);
      if (!negative) {
        const Pairs p = pairs(j);
        const V term = powered(max(zero, d - positive_margin));
        pull = select(p.positive, term, zero);
        pulled = select(p.positive, nonzero ? select(term > zero, one, zero) : one, zero);
        push = select(p.negative, push, zero);
        pushed = select(p.negative, pushed, zero);
      }
      for (int i = 0; i < Stats::count; ++i) {
        sums[i] = sums[i] + values[i];
        if (this->serves_columns()) this->add_to_columns(i, j, values[i]);
      }
    });
    for (int i = 0; i < Stats::count; ++i) out[i] += sum_of(sums[i]);
  }

  // W = a p relu(d - m+)^(p-1) / d on positives, -b p relu(m - d)^(p-1) / d on negatives, 0 at d = 0; adds its sum
  void weights() const {
    const V zero(T(0)), one(T(1));
    V sum = zero;
    this->replace([&](int64_t j, bool negative) {
      const V d = distance(j);
      const V factor = select(d > zero, (squared ? V(T(2)) : one) / d, zero);
      const V near = squared ? max(zero, margin - d) : select(margin > d, one, zero);
      V w = -(both(Coefs::negative, j) * near * factor);
      if (!negative) {
        const Pairs p = pairs(j);
        const V far = squared ? max(zero, d - positive_margin) : select(d > positive_margin, one, zero);
        const V pull = both(Coefs::positive, j) * far * factor;
        w = select(p.negative, w, select(p.positive, pull, zero));
      }
      sum = sum + w;
      if (this->serves_columns()) this->add_to_columns(0, j, w);
      return w;
    });
    if (group >= 0) out[0] += sum_of(sum);
  }

 private:
  // d = |x - y|, 0 where d^2 is what rounding alone can make of 0
  METRICSEG_HD V distance(int64_t j) const {
    const V squares = V(coefs[Coefs::square]) + this->y_coef(Coefs::square, j), product = this->product(j);
    const V d2 = squares - (product + product);
    const V noise = squares * V(8 * std::numeric_limits<T>::epsilon());
    return sqrt(select(noise >= d2, V(T(0)), d2));
  }

  METRICSEG_HD V powered(V x) const { return squared ? x * x : x; }
  METRICSEG_HD V both(int coef, int64_t j) const { return V(coefs[coef]) + this->y_coef(coef, j); }
};

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::contrast
