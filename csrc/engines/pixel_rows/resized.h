// Bilinear resizing of a map as plain data: for each row and each column of the result, two cells and a fraction.
#pragma once

#include "../../common/macros.h"

namespace metricseg {

template <typename T>
struct Sample {
  int64_t cell, next;
  T fraction;
};

template <typename T>
struct Resized {
  const Sample<T>* rows = nullptr;     // [H]
  const Sample<T>* columns = nullptr;  // [W]

  METRICSEG_HD explicit operator bool() const { return rows != nullptr; }
};

}  // namespace metricseg
