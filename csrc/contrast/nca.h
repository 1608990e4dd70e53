// Epilogues of "nca", see NcaStats and NcaCoefs in contrast/forms.py.
#pragma once

#include "../engines/row_pairs/row.h"

namespace metricseg::contrast {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

template <typename T>
class Nca : row_pairs::METRICSEG_SIMD::Row<T> {
  using Base = row_pairs::METRICSEG_SIMD::Row<T>;
  using Base::coefs, Base::out, Base::pairs, Base::product;
  using typename Base::Pairs, typename Base::V;

  struct Constants {
    double temperature;
  };
  struct Stats {
    enum { negative_max, negative_lse, positive_max, positive_lse, count };
  };
  struct Coefs {
    enum { step, negative_max, negative_lse, positive_max, positive_lse, count };
  };

  const V scale;  // 1 / temperature

 public:
  static constexpr int kConstants = sizeof(Constants) / sizeof(double), kCoefs = Coefs::count, kStats = Stats::count;

  METRICSEG_HD Nca(const row_pairs::Tile<T>& tile, int64_t r)
      : Base(tile, r), scale(T(1 / reinterpret_cast<const Constants*>(tile.constants)->temperature)) {}

  // complete rows: their stats from nothing
  void rows() const {
    if (this->group < 0) return;
    const V zero(T(0)), least(-Base::kInfinity);
    V negative_max = least, positive_max = least, negatives = zero, positives = zero;
    this->visit([&](int64_t j, bool negative) {
      const V v = product(j);
      if (negative) return void(negative_max = max(v, negative_max));
      const Pairs p = pairs(j);
      negative_max = max(select(p.negative, v, least), negative_max);
      positive_max = max(select(p.positive, v, least), positive_max);
    });
    out[Stats::negative_max] = row_pairs::METRICSEG_SIMD::largest_of(negative_max);
    out[Stats::positive_max] = row_pairs::METRICSEG_SIMD::largest_of(positive_max);
    this->visit([&](int64_t j, bool negative) {
      const V e = exp_below_zero((product(j) - V(out[Stats::negative_max])) * scale);
      if (negative) return void(negatives = negatives + e);
      const Pairs p = pairs(j);
      negatives = negatives + select(p.negative, e, zero);
      const V f = exp_below_zero((product(j) - V(out[Stats::positive_max])) * scale);
      positives = positives + select(p.positive, f, zero);
    });
    out[Stats::negative_lse] = std::log(sum_of(negatives));
    out[Stats::positive_lse] = std::log(sum_of(positives));
  }

  // W = step exp(s - LSE) on negatives, -step exp(s - LSE) on positives, each with the LSE of its own kind
  void weights() const {
    const V zero(T(0)), step(coefs ? coefs[Coefs::step] : T(0));
    this->replace([&](int64_t j, bool negative) {
      const V push = step * share(j, Coefs::negative_max);
      if (negative) return push;
      const Pairs p = pairs(j);
      return select(p.negative, push, select(p.positive, -(step * share(j, Coefs::positive_max)), zero));
    });
  }

 private:
  // exp(s - LSE), of the maximum and the lse that begin at `coef`
  METRICSEG_HD V share(int64_t j, int coef) const {
    return exp_below_zero((product(j) - V(coefs[coef])) * scale - V(coefs[coef + 1]));
  }
};

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::contrast
