// Advice on the memory of a tensor that Python fills, see advise_huge_pages.
#include "library.h"
#include "torch_map.h"

namespace metricseg {
namespace {

void expect_writes_kernel(Tensor fresh) { expect_writes(fresh); }

}  // namespace
}  // namespace metricseg

METRICSEG_LIBRARY_IMPL(CPU, m) { m.impl("expect_writes_kernel", TORCH_BOX(&metricseg::expect_writes_kernel)); }
