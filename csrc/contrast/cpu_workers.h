// The tables of epilogues of the contrast family, one for each vector width.
#pragma once

#include "../engines/row_pairs/tile.h"

namespace metricseg::contrast {

struct Workers {
  const row_pairs::Epilogue* epilogues;
};

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::contrast
