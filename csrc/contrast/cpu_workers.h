// The tables of epilogues of the contrast family, one for each vector width.
#pragma once

#include "../common/by_type.h"
#include "../engines/row_pairs/tile.h"

namespace metricseg::contrast {

template <typename T>
struct Loops {
  const row_pairs::Epilogue<T>* epilogues;
};

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::contrast
