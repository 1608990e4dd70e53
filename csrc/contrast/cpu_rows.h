// The tile loops of the contrast family. A row of products meets the columns chunk by chunk. Where rows are sorted by
// label most chunks hold negatives only, and nothing is compared there; a chunk with a border of classes, or of a set
// that is not sorted, goes through masks. Each pair costs one exponential in a sweep, two where it is positive. A tile
// is read, and by `weights` written, once: 4 bytes or 8 a pair, from the cache that the matrix product left it in.
#pragma once

#include "../common/simd/lanes.h"
#include "cpu_tile.h"

namespace metricseg::contrast {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

template <typename T>
METRICSEG_HD typename Register<T>::Bits load_integers(const int32_t* p) {
  typedef int32_t Narrow __attribute__((vector_size(METRICSEG_SIMD_BYTES / sizeof(T) * sizeof(int32_t))));
  Narrow values;
  std::memcpy(&values, p, sizeof values);
  return __builtin_convertvector(values, typename Register<T>::Bits);
}

template <typename T>
METRICSEG_HD T largest_of(Lanes<T> x) {
  T m = x.v[0];
  for (int i = 1; i < Lanes<T>::count; ++i) m = x.v[i] > m ? x.v[i] : m;
  return m;
}

template <typename T>
METRICSEG_HD void add(T* p, Lanes<T> x) {
  (Lanes<T>::load(p) + x).store(p);
}

template <typename T>
class Row {
  using V = Lanes<T>;
  static constexpr int N = V::count;
  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

  struct Pairs {
    Mask<T> positive, negative;
  };

  const Tile<T>& tile;
  const int32_t group, id;
  T* const s;            // [columns]
  const T* const terms;  // [4]
  T* const out;          // [kStats]
  T* const y_out;        // [kStats, columns] or null
  const V scale;

 public:
  METRICSEG_HD Row(const Tile<T>& tile, int64_t r, T* y_out)
      : tile(tile),
        group(tile.x_groups[r]),
        id(tile.x_ids ? tile.x_ids[r] : 0),
        s(tile.s + r * tile.columns),
        terms(tile.x_terms ? tile.x_terms + 4 * r : nullptr),
        out(tile.x_out ? tile.x_out + kStats * r : nullptr),
        y_out(y_out),
        scale(tile.inv_temperature) {}

  void run() const {
    if (tile.phase == Phase::rows) return complete();
    if (tile.phase == Phase::weights) return weights();
    if (group < 0) return;
    if (tile.phase == Phase::sum) {
      out[1] += sum_exp(terms[0]);
    } else if (tile.form == Form::margin) {
      distances();
    } else {
      positives(terms[0], terms[3]);
    }
  }

 private:
  // f(column, known to be negative) on every vector of columns in [begin, end) chunks that is not wholly absent.
  template <typename F>
  METRICSEG_HD void visit(const F& f, bool negatives = true) const {
    for (int64_t begin = 0, chunk = 0; begin < tile.columns; begin += kChunk, ++chunk) {
      const int64_t end = begin + kChunk < tile.columns ? begin + kChunk : tile.columns;
      const int32_t low = tile.lowest[chunk], high = tile.highest[chunk];
      if (high < 0) continue;
      if (group < low || group > high) {
        if (!negatives) continue;
        if (low >= 0) {
          for (int64_t j = begin; j < end; j += N) f(j, true);
          continue;
        }
      }
      for (int64_t j = begin; j < end; j += N) f(j, false);
    }
  }

  METRICSEG_HD Pairs pairs(int64_t j) const {
    using Bits = typename Register<T>::Bits;
    const Bits groups = load_integers<T>(tile.y_groups + j);
    const Bits same = groups == (Bits{} + group);
    const Bits self = tile.y_ids ? same & (load_integers<T>(tile.y_ids + j) == (Bits{} + id)) : Bits{};
    return {{same & ~self}, {(groups >= 0) & ~same}};
  }

  METRICSEG_HD Mask<T> in_denominator(int64_t j) const {
    const Pairs p = pairs(j);
    return tile.form == Form::all ? p.positive | p.negative : p.negative;
  }

  METRICSEG_HD V product(int64_t j) const { return V::load(s + j); }
  METRICSEG_HD V y_term(int i, int64_t j) const { return V::load(tile.y_terms + i * tile.y_stride + j); }

  T largest() const {
    V m(-kInfinity);
    visit([&](int64_t j, bool negative) {
      const V v = product(j);
      m = max(negative ? v : select(in_denominator(j), v, V(-kInfinity)), m);
    });
    return largest_of(m);
  }

  // sum exp(s - m / t); a tile that serves its columns too adds the same numbers there.
  T sum_exp(T m) const {
    V sum(T(0));
    visit([&](int64_t j, bool negative) {
      V e = exp_below_zero((product(j) - V(m)) * scale);
      if (!negative) e = select(in_denominator(j), e, V(T(0)));
      sum = sum + e;
      if (y_out) add(y_out + tile.columns + j, e);
    });
    return sum_of(sum);
  }

  // softplus(z) and sigmoid(z) from one exponential; either may lie where z does
  METRICSEG_HD static void logistic(V z, V& softplus, V& sigmoid) {
    const V e = exp_below_zero(-fabs(z)), one(T(1));
    softplus = max(z, V(T(0))) + log1p(e);
    sigmoid = select(z >= V(T(0)), one, e) / (one + e);
  }

  // n - s = (m - <x, y>) / t + L
  METRICSEG_HD V above(V m, V log_sum, V product) const { return (m - product) * scale + log_sum; }

  // count, and sum softplus(n - s), sum sigmoid(n - s); for "all" sum (n - s)
  void positives(T m, T log_sum) const {
    const V zero(T(0)), one(T(1));
    V count = zero, total = zero, sigmoids = zero;
    visit(
        [&](int64_t j, bool) {
          const Mask<T> positive = pairs(j).positive;
          const V counted = select(positive, one, zero);
          V first = above(V(m), V(log_sum), product(j)), second = zero;
          if (tile.form == Form::negatives) logistic(first, first, second);
          count = count + counted;
          total = total + select(positive, first, zero);
          sigmoids = sigmoids + select(positive, second, zero);
          if (!y_out) return;
          first = above(y_term(0, j), y_term(3, j), product(j));
          if (tile.form == Form::negatives) logistic(first, first, second);
          add(y_out + 2 * tile.columns + j, counted);
          add(y_out + 3 * tile.columns + j, select(positive, first, zero));
          add(y_out + 4 * tile.columns + j, select(positive, second, zero));
        },
        false);
    out[2] += sum_of(count);
    out[3] += sum_of(total);
    out[4] += sum_of(sigmoids);
  }

  void complete() const {
    out[0] = out[1] = -kInfinity;
    for (int i = 2; i < kStats; ++i) out[i] = T(0);
    if (group < 0) return;
    out[0] = largest();
    out[1] = std::log(sum_exp(out[0]));
    positives(out[0], out[1]);
  }

  // d = |x - y|, 0 where d^2 is what rounding alone can make of 0
  METRICSEG_HD V distance(int64_t j, T x_square) const {
    const V squares = V(x_square) + y_term(0, j), product = V::load(s + j);
    const V d2 = squares - (product + product);
    const V noise = squares * V(8 * std::numeric_limits<T>::epsilon());
    return sqrt(select(noise >= d2, V(T(0)), d2));
  }

  METRICSEG_HD V powered(V x) const { return tile.squared ? x * x : x; }

  // the four stats of "margin": sums of terms and their counts
  void distances() const {
    const V zero(T(0)), one(T(1));
    V sums[4] = {zero, zero, zero, zero};
    visit([&](int64_t j, bool negative) {
      const V d = distance(j, terms[0]);
      V values[4] = {zero, zero, powered(max(zero, V(tile.margin) - d)), one};
      if (tile.nonzero) values[3] = select(values[2] > zero, one, zero);
      if (!negative) {
        const Pairs p = pairs(j);
        const V pull = powered(max(zero, d - V(tile.positive_margin)));
        values[0] = select(p.positive, pull, zero);
        values[1] = select(p.positive, tile.nonzero ? select(pull > zero, one, zero) : one, zero);
        values[2] = select(p.negative, values[2], zero);
        values[3] = select(p.negative, values[3], zero);
      }
      for (int i = 0; i < 4; ++i) {
        sums[i] = sums[i] + values[i];
        if (y_out) add(y_out + i * tile.columns + j, values[i]);
      }
    });
    for (int i = 0; i < 4; ++i) out[i] += sum_of(sums[i]);
  }

  void weights() const {
    if (group >= 0) {
      for (int64_t begin = 0, chunk = 0; begin < tile.columns; begin += kChunk, ++chunk) {  // what `visit` leaves out
        if (tile.highest[chunk] < 0) clear(begin, begin + kChunk < tile.columns ? begin + kChunk : tile.columns);
      }
      if (tile.form == Form::margin) {
        margin_weights();
      } else {
        softmax_weights();
      }
    } else {
      clear(0, tile.columns);
    }
  }

  METRICSEG_HD void clear(int64_t begin, int64_t end) const {
    for (int64_t j = begin; j < end; j += N) V(T(0)).store(s + j);
  }

  // the row's share of a coefficient, and the column's where the tile serves both
  METRICSEG_HD V coefficient(int i, int64_t j) const { return tile.y_terms ? V(terms[i]) + y_term(i, j) : V(terms[i]); }

  // "negatives":  W = b exp(s - m / t) on negatives, -a sigmoid(n - s) on positives
  // "all":        W = b exp(s - m / t) on all but self, less a on positives
  void softmax_weights() const {
    const V zero(T(0));
    visit([&](int64_t j, bool negative) {
      const V v = product(j);
      const V push = exp_below_zero((v - V(terms[0])) * scale) * coefficient(1, j);
      if (negative) return push.store(s + j);
      const Pairs p = pairs(j);
      if (tile.form == Form::all) {
        const V w = select(p.positive | p.negative, push, zero);
        return (w - select(p.positive, coefficient(2, j), zero)).store(s + j);
      }
      V softplus, sigmoid;
      logistic(above(V(terms[0]), V(terms[3]), v), softplus, sigmoid);
      V pull = V(terms[2]) * sigmoid;
      if (tile.y_terms) {
        logistic(above(y_term(0, j), y_term(3, j), v), softplus, sigmoid);
        pull = pull + y_term(2, j) * sigmoid;
      }
      select(p.negative, push, select(p.positive, -pull, zero)).store(s + j);
    });
  }

  // W = a p relu(d - m+)^(p-1) / d on positives, -b p relu(m - d)^(p-1) / d on negatives, 0 at d = 0
  void margin_weights() const {
    const V zero(T(0)), one(T(1)), margin(tile.margin), positive_margin(tile.positive_margin);
    V sum = zero;
    visit([&](int64_t j, bool negative) {
      const V d = distance(j, terms[0]);
      const V factor = select(d > zero, (tile.squared ? V(T(2)) : one) / d, zero);
      const V near = tile.squared ? max(zero, margin - d) : select(margin > d, one, zero);
      V w = -(margin_coefficient(2, j) * near * factor);
      if (!negative) {
        const Pairs p = pairs(j);
        const V far = tile.squared ? max(zero, d - positive_margin) : select(d > positive_margin, one, zero);
        const V pull = margin_coefficient(1, j) * far * factor;
        w = select(p.negative, w, select(p.positive, pull, zero));
      }
      w.store(s + j);
      sum = sum + w;
      if (y_out) add(y_out + j, w);
    });
    out[0] += sum_of(sum);
  }

  // y_terms hold the squared norms here; their coefficients count where the set meets itself
  METRICSEG_HD V margin_coefficient(int i, int64_t j) const { return V(terms[i]) + y_term(i, j); }
};

template <typename T>
inline void work(const Tile<T>& tile, int64_t begin, int64_t end, T* y_out) {
  for (int64_t r = begin; r < end; ++r) Row<T>(tile, r, y_out).run();
}

constexpr Workers workers{work<float>, work<double>};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::contrast
