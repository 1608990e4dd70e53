// Raw kernels of the predict family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/predict/op.py) has checked the arguments of the user and allocated the outputs.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "run.cuh"

namespace metricseg::predict {
namespace {

void check(const Arguments<Tensor>& a) {
  STD_TORCH_CHECK(!a.maps.empty() && a.maps.size() <= kMostMaps && a.maps.size() == a.flipped.size() &&
                      a.maps.size() == a.shares.size(),
                  "metricseg: 1 to 32 maps, and as many flags and shares, are wanted");
  const Tensor &first = a.maps[0], &pixels = a.labels ? *a.labels : *a.target;
  STD_TORCH_CHECK(first.dim() == 4 && is_floating(type_of(first)), "metricseg: maps must be [B, K, h, w], floating");
  STD_TORCH_CHECK(pixels.dim() == 3 && !is_floating(type_of(pixels)), "metricseg: labels [B, H, W] are wanted");
  STD_TORCH_CHECK(a.labels || type_of(pixels) != Type::i16, "metricseg: target has the wrong dtype");
  const int64_t B = first.size(0), K = first.size(1), H = pixels.size(1), W = pixels.size(2);
  constexpr int64_t kLargest = int64_t(1) << 31;
  STD_TORCH_CHECK(K > 0 && K <= 65536 && std::max(H, W) < kLargest, "metricseg: classes or a size out of range");
  for (const Tensor& map : a.maps) {
    STD_TORCH_CHECK(
        map.dim() == 4 && std::min(map.size(2), map.size(3)) > 0 && std::max(map.size(2), map.size(3)) < kLargest,
        "metricseg: a map has a size out of range");
    check_tensor(map, {B, K, map.size(2), map.size(3)}, first, first.scalar_type(), "a map", false);
  }
  const std::vector<int64_t> shape{B, H, W};
  check_tensor(pixels, shape, first, pixels.scalar_type(), "labels", a.labels.has_value());
  check_tensor(a.confidence, shape, first, accumulator_of(first), "confidence");
  check_tensor(a.entropy, shape, first, accumulator_of(first), "entropy");
  check_tensor(a.counts, {K, K}, first, ScalarType::Long, "counts");
  check_tensor(a.bad, {2}, first, ScalarType::Double, "bad");
}

void run(const Arguments<Tensor>& a) {
  check(a);
  CudaDevice device(a.maps[0]);
  dispatch_accumulator(type_of(a.maps[0]), [&](auto zero) { predict<decltype(zero)>(device, a.cuda_params()); });
}

}  // namespace
}  // namespace metricseg::predict

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using namespace metricseg::predict;
  m.impl("predict_labels_kernel", TORCH_BOX((&predict_kernel<metricseg::Tensor, run>)));
  m.impl("confusion_matrix_kernel", TORCH_BOX((&confusion_kernel<metricseg::Tensor, run>)));
}
