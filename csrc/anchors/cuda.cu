// Raw kernels of the anchors family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/anchors/op.py) has checked the arguments of the user and allocated the outputs.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "run.cuh"

namespace metricseg::anchors {
namespace {

constexpr double kDeviations = 6.0;

void run_sample(const SampleArguments<Tensor>& a) {
  const Tensor& labels = a.labels;
  const int64_t S = a.rules.max_samples;
  STD_TORCH_CHECK(labels.dim() == 3 && !is_floating(type_of(labels)), "metricseg: labels must be [B, h, w], integers");
  const int64_t B = labels.size(0), h = labels.size(1), w = labels.size(2);
  STD_TORCH_CHECK(h * w < int64_t(1) << 32, "metricseg: an image of 2^32 pixels or more");
  STD_TORCH_CHECK(a.num_classes > 0 && S > 0 && S < int64_t(1) << 31 && a.rules.max_views > 0,
                  "metricseg: num_classes, max_samples or max_views out of range");
  if (a.predictions) {
    const Tensor& predictions = *a.predictions;
    STD_TORCH_CHECK(!is_floating(type_of(predictions)), "metricseg: predictions must be integers");
    check_tensor(predictions, {B, h, w}, labels, predictions.scalar_type(), "predictions", false);
  }
  check_tensor(a.first, {B, h, w}, labels, ScalarType::Byte, "first", false);
  check_tensor(a.seed, {}, labels, ScalarType::Long, "seed");
  check_tensor(a.index, {S}, labels, ScalarType::Long, "index");
  check_tensor(a.sampled, {S}, labels, ScalarType::Long, "sampled");
  check_tensor(a.count, {}, labels, ScalarType::Long, "count");
  check_tensor(a.bad, {2}, labels, ScalarType::Long, "bad");
  CudaDevice device(labels);
  sample_anchors(device, a.params(kDeviations));
}

template <bool backward>
void run_gather(const GatherArguments<Tensor>& a) {
  const Tensor& map = a.features;
  STD_TORCH_CHECK(map.dim() == 4 && is_floating(type_of(map)) && a.index.dim() == 1,
                  "metricseg: a floating map [B, C, h, w] and an index [S] are wanted");
  const int64_t C = map.size(1), h = map.size(2), w = map.size(3), S = a.index.size(0);
  check_tensor(a.index, {S}, map, ScalarType::Long, "index");
  check_tensor(a.rows, {S, C}, map, map.scalar_type(), "rows");
  check_tensor(a.norms, {S}, map, accumulator_of(map), "norms");
  if (backward) {
    const bool last = map.stride(1) == 1 && map.stride(3) == C && map.stride(2) == C * w && map.stride(0) == C * h * w;
    STD_TORCH_CHECK(map.is_contiguous() || last, "metricseg: grad must be contiguous or channels-last");
    check_tensor(a.order, {S}, map, ScalarType::Long, "order");
    check_tensor(a.grad_rows, {S, C}, map, map.scalar_type(), "grad_rows", false);
  }
  CudaDevice device(map);
  dispatch_accumulator(type_of(map), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? gather_pixels_bwd(device, params) : gather_pixels_fwd(device, params);
  });
}

}  // namespace
}  // namespace metricseg::anchors

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using namespace metricseg::anchors;
  using metricseg::Tensor;
  m.impl("sample_anchors_kernel", TORCH_BOX((&sample_anchors_kernel<Tensor, run_sample>)));
  m.impl("gather_pixels_fwd_kernel", TORCH_BOX((&gather_pixels_fwd_kernel<Tensor, run_gather<false>>)));
  m.impl("gather_pixels_bwd_kernel", TORCH_BOX((&gather_pixels_bwd_kernel<Tensor, run_gather<true>>)));
}
