// Bilinear coordinates of one axis, in exact integer arithmetic. Label index d is at cell coordinate
//   s = max(0, mul d + add) / den
// with mul = 2h, add = h - H, den = 2H (align_corners = false) or mul = h-1, add = 0, den = H - 1 (true), as
// F.interpolate(mode="bilinear") computes it, without its rounding. Cell c = floor(s), fraction s - c. Because the
// division is exact, "the first label of cell c" is exact too, and neighboring tiles never disagree.
#pragma once

#include "macros.h"

namespace metricseg {

struct Axis {
  int64_t cells;   // h: size of the logits along this axis
  int64_t labels;  // H: size of the labels along this axis
  int64_t mul, add, den;

  METRICSEG_HD static Axis make(int64_t cells, int64_t labels, bool align_corners) {
    if (align_corners) {
      return labels > 1 ? Axis{cells, labels, cells - 1, 0, labels - 1} : Axis{cells, labels, 0, 0, 1};
    }
    return Axis{cells, labels, 2 * cells, cells - labels, 2 * labels};
  }

  METRICSEG_HD bool identity() const { return cells == labels; }

  METRICSEG_HD int64_t numerator(int64_t label) const {
    const int64_t n = mul * label + add;
    return n > 0 ? n : 0;
  }

  METRICSEG_HD int64_t cell(int64_t label) const { return numerator(label) / den; }

  // The right-hand (or lower) neighbor; that of the last cell is itself.
  METRICSEG_HD int64_t next(int64_t cell) const { return cell + 1 < cells ? cell + 1 : cell; }

  template <typename T>
  METRICSEG_HD T fraction(int64_t label) const {
    return static_cast<T>(numerator(label) % den) / static_cast<T>(den);
  }

  // The first label whose cell is >= c; `labels` if there is none. Labels of cell c: [first(c), first(c + 1)).
  METRICSEG_HD int64_t first(int64_t c) const {
    if (c <= 0) return 0;
    if (mul == 0 || c >= cells) return labels;
    const int64_t n = c * den - add;  // smallest d with mul d >= n
    const int64_t d = n <= 0 ? 0 : (n + mul - 1) / mul;
    return d < labels ? d : labels;
  }
};

// What lies between two values, `share` of the way from a to b.
template <typename T>
METRICSEG_HD T mix(T a, T b, T share) {
  return (T(1) - share) * a + share * b;
}

}  // namespace metricseg
