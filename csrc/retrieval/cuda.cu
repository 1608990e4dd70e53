// Raw kernel of the retrieval family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/retrieval/op.py) has checked the arguments of the user and allocated the outputs.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "run.cuh"

namespace metricseg::retrieval {
namespace {

void run(const TopkArguments<Tensor>& a) {
  const Tensor &queries = a.queries, &bank = a.bank;
  STD_TORCH_CHECK(queries.dim() == 2 && bank.dim() == 2 && is_floating(type_of(queries)) && a.values.dim() == 2,
                  "metricseg: floating queries [Q, D], bank [M, D] and values [Q, k] are wanted");
  const int64_t Q = queries.size(0), M = bank.size(0), k = a.values.size(1);
  STD_TORCH_CHECK(M < int64_t(1) << 31 && k > 0 && k < int64_t(1) << 20, "metricseg: 2^31 rows, or k out of range");
  check_tensor(bank, {M, queries.size(1)}, queries, queries.scalar_type(), "bank", false);
  check_tensor(a.valid, {M}, queries, ScalarType::Byte, "valid", false);
  check_tensor(a.values, {Q, k}, queries, accumulator_of(queries), "values");
  check_tensor(a.indices, {Q, k}, queries, ScalarType::Long, "indices");
  CudaDevice device(queries);
  dispatch_accumulator(type_of(queries), [&](auto zero) { topk(device, a.template params<decltype(zero)>()); });
}

}  // namespace
}  // namespace metricseg::retrieval

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using namespace metricseg::retrieval;
  m.impl("topk_rows_kernel", TORCH_BOX((&topk_kernel<metricseg::Tensor, run>)));
}
