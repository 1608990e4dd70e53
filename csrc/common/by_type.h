// A set of loops for each type that arithmetic runs in.
#pragma once

#include "macros.h"

namespace metricseg {

template <template <typename> class Loops>
struct ByType {
  Loops<float> f32;
  Loops<double> f64;

  METRICSEG_HD const Loops<float>& of(float) const { return f32; }
  METRICSEG_HD const Loops<double>& of(double) const { return f64; }
};

}  // namespace metricseg
