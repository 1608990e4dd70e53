// Raw kernels of the segments family on CUDA tensors: checks, then the launches of run.cuh on the stream of torch. The
// caller (metricseg_kernels/segments/op.py) has checked the arguments of the user and allocated the outputs.

#include "../common/cuda/launch.h"
#include "../common/host/checks.h"
#include "../common/host/library.h"
#include "arguments.h"
#include "run.cuh"

namespace metricseg::segments {
namespace {

constexpr int64_t kMostPixels = int64_t(1) << 30;  // of an image

void check_labels(const Tensor& labels, const char* name) {
  STD_TORCH_CHECK(labels.dim() == 3 && !is_floating(type_of(labels)), "metricseg: ", name,
                  " must be [B, h, w], integers");
}

void run_kmeans(const KmeansArguments<Tensor>& a) {
  const Tensor &x = a.embeddings, &ids = a.ids;
  STD_TORCH_CHECK(x.dim() == 4 && is_floating(type_of(x)), "metricseg: embeddings must be [B, D, h, w], floating");
  check_labels(ids, "ids");
  const int64_t B = x.size(0), H = ids.size(1), W = ids.size(2);
  STD_TORCH_CHECK(H * W < kMostPixels && x.size(1) < kMostPixels && a.rows * a.columns <= 65536,
                  "metricseg: 2^30 pixels or channels, or more than 65536 clusters");
  STD_TORCH_CHECK(x.size(2) * x.size(3) > 0 || B * H * W == 0, "metricseg: no pixel to interpolate");
  check_tensor(ids, {B, H, W}, x, ScalarType::Long, "ids");
  if (a.location) {
    const bool same = accumulator_of(*a.location) == accumulator_of(x);
    STD_TORCH_CHECK(is_floating(type_of(*a.location)) && same, "metricseg: location has the wrong dtype");
    check_tensor(a.location, {B, 2, H, W}, x, a.location->scalar_type(), "location", false);
  }
  check_tensor(a.valid, {B, H, W}, x, ScalarType::Byte, "valid", false);
  if (a.init) {
    check_labels(*a.init, "init");
    check_tensor(a.init, {B, H, W}, x, a.init->scalar_type(), "init", false);
  }
  CudaDevice device(x);
  dispatch_accumulator(type_of(x),
                       [&](auto zero) { spherical_kmeans(device, a.template params<decltype(zero)>(), a.iterations); });
}

void run_split(const SplitArguments<Tensor>& a) {
  check_labels(a.ids, "ids");
  check_labels(a.labels, "labels");
  const int64_t B = a.ids.size(0), h = a.ids.size(1), w = a.ids.size(2);
  STD_TORCH_CHECK(h * w < kMostPixels && a.found.dim() == 1, "metricseg: an image of 2^30 pixels or more");
  check_tensor(a.labels, {B, h, w}, a.ids, a.labels.scalar_type(), "labels", false);
  check_tensor(a.dense, {B, h, w}, a.ids, ScalarType::Long, "dense");
  check_tensor(a.found, {a.found.size(0)}, a.ids, ScalarType::Long, "found");
  check_tensor(a.count, {}, a.ids, ScalarType::Long, "count");
  CudaDevice device(a.ids);
  split_by_label(device, a.params());
}

template <bool backward>
void run_sums(const SumsArguments<Tensor>& a) {
  const Tensor &x = a.x, &sums = a.sums;
  STD_TORCH_CHECK(x.dim() == 4 && is_floating(type_of(x)) && sums.dim() == 2,
                  "metricseg: floating maps [B, D, h, w] and sums [S, D] are wanted");
  check_labels(a.ids, "ids");
  const int64_t B = x.size(0), h = x.size(2), w = x.size(3), S = sums.size(0);
  STD_TORCH_CHECK(B * h * w < int64_t(1) << 32 && S < int64_t(1) << 31, "metricseg: 2^32 pixels or 2^31 segments");
  check_tensor(a.ids, {B, h, w}, x, a.ids.scalar_type(), "ids", false);
  check_tensor(sums, {S, x.size(1)}, x, accumulator_of(x), "sums", !backward);
  check_tensor(a.mass, {S}, x, accumulator_of(x), "mass");
  CudaDevice device(x);
  dispatch_accumulator(type_of(x), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    backward ? label_sums_bwd(device, params) : label_sums_fwd(device, params);
  });
}

}  // namespace
}  // namespace metricseg::segments

METRICSEG_LIBRARY_IMPL(CUDA, m) {
  using namespace metricseg::segments;
  using metricseg::Tensor;
  m.impl("kmeans_kernel", TORCH_BOX((&kmeans_kernel<Tensor, run_kmeans>)));
  m.impl("split_by_label_kernel", TORCH_BOX((&split_by_label_kernel<Tensor, run_split>)));
  m.impl("segment_sums_fwd_kernel", TORCH_BOX((&segment_sums_fwd_kernel<Tensor, run_sums<false>>)));
  m.impl("segment_sums_bwd_kernel", TORCH_BOX((&segment_sums_bwd_kernel<Tensor, run_sums<true>>)));
}
