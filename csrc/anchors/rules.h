// Rules of the choice of anchors, the same on every backend: random keys by counter, and the quotas of a slot. A slot
// is image K + class, a cell 2 slot + group, group 0 being the preferred one. See docs/kernels/anchors.md.
#pragma once

#include <cmath>
#include <cstdint>

#include "../common/macros.h"

namespace metricseg::anchors {

// The finalizer of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014).
METRICSEG_HD uint64_t mix(uint64_t z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

enum Stream { kPixels, kSlots };

// The key of counter i. `mix` is a bijection, so no two counters have the same: an order by key has no ties.
struct Keys {
  static constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;
  uint64_t base;

  static METRICSEG_HD Keys make(int64_t seed, Stream stream) {
    return {mix(static_cast<uint64_t>(seed) + kGolden * (static_cast<uint64_t>(stream) + 1))};
  }
  METRICSEG_HD uint64_t operator()(int64_t i) const { return mix(base + static_cast<uint64_t>(i) * kGolden); }
};

struct Rules {
  int64_t max_samples, max_views, min_pixels;
  bool half;  // of the views from group 0, if both groups have enough; else as many as it has

  METRICSEG_HD bool open(int64_t have_0, int64_t have_1) const { return have_0 + have_1 > min_pixels; }

  // min(max_samples // slots, max_views), at least 1
  METRICSEG_HD int64_t views(int64_t slots) const {
    const int64_t even = max_samples / (slots > 0 ? slots : 1);
    return even < 1 ? 1 : even < max_views ? even : max_views;
  }

  // Number of views of a slot from group 0; group 1 supplies the rest, as far as it has pixels.
  METRICSEG_HD int64_t first(int64_t have_0, int64_t have_1, int64_t views) const {
    const int64_t lacking = views - have_1;
    const int64_t wanted = !half ? views : lacking > views / 2 ? lacking : views / 2;
    return have_0 < wanted ? have_0 : wanted;
  }
};

// A limit that at least n of `have` uniform keys are likely to be below: finding fewer takes `deviations` standard
// deviations. Callers count the keys below it, and repair.
METRICSEG_HD uint64_t likely_limit(int64_t have, int64_t n, double deviations) {
  const double wanted = n + deviations * (std::sqrt(static_cast<double>(n)) + 2.5);
  return wanted >= have ? ~uint64_t(0) : static_cast<uint64_t>(wanted / have * 0x1p64);
}

}  // namespace metricseg::anchors
