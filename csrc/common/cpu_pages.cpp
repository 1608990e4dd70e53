// The raw op of pages.h, for gradients that Python or the matrix library fills.
#include <torch/csrc/stable/library.h>

#include "pages.h"

STABLE_TORCH_LIBRARY_IMPL(metricseg, CPU, m) { m.impl("huge_pages_kernel", TORCH_BOX(&metricseg::want_huge_pages)); }
