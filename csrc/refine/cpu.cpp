// Refined upsampling on the CPU: turns the tensors of torch into a CpuParams, and gives its rows and channels to the
// threads of torch. Each value is added up by one thread in an order that does not depend on their number.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/simd_choice.h"
#include "../common/host/torch_map.h"
#include "../engines/pixel_rows/samples.h"
#include "cpu_params.h"

namespace metricseg::refine {
namespace {

template <typename T>
const Loops<T>& loops() {
  static const Loops<T>& chosen = METRICSEG_WIDEST_OF(T);
  return chosen;
}

// A call, and the memory behind its pointers.
template <typename T>
struct Call {
  CpuParams<T> params{};
  int64_t batch;
  std::vector<Sample<T>> rows, columns;
  decltype(aligned_values<T>(0)) panel, displacements;

  Call(const Tensor& features, const Tensor& offsets, const Optional& neighbor_logits, const Tensor& output,
       bool align_corners, bool zeros)
      : batch(features.size(0)) {
    params.channels = features.size(1);
    params.cell_rows = features.size(2);
    params.cell_columns = features.size(3);
    params.height = offsets.size(2);
    params.width = offsets.size(3);
    params.zeros = zeros;
    params.features = map_of(features);
    params.offsets = map_of(offsets);
    params.neighbor_logits = map_of(neighbor_logits);
    params.output = map_of(output);
    rows = samples<T>(params.cell_rows, params.height, align_corners);
    columns = samples<T>(params.cell_columns, params.width, align_corners);
    params.rows = rows.data();
    params.columns = columns.data();
  }

  // worker on [0, n) of each image, in steps of at least `grain`
  void run(Worker<T> worker, int64_t n, int64_t step, int64_t more = 0) const {
    const int64_t shares = ceil_div(n, step);
    parallel(batch * shares, 1, [&](int64_t begin, int64_t end) {
      const auto scratch = aligned_values<T>(params.scratch_values() + more);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = i % shares * step;
        worker(params, i / shares, first, std::min(first + step, n), scratch.get());
      }
    });
  }

  void pack() {
    panel = aligned_values<T>(batch * params.cells() * params.packed());
    params.panel = panel.get();
    run(loops<T>().pack, params.cell_rows, std::max<int64_t>(1, 256 / params.cell_columns));
  }
};

void fwd_kernel(Tensor features, Tensor offsets, Optional neighbor_logits, bool align_corners, bool zeros,
                Tensor output) {
  if (output.numel() == 0) return;
  dispatch_accumulator(type_of(features), [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(features, offsets, neighbor_logits, output, align_corners, zeros);
    call.params.output = fresh_map_of(output);
    call.pack();
    call.run(loops<T>().upsample, call.params.height, 1);
  });
}

void bwd_kernel(Tensor features, Tensor offsets, Optional neighbor_logits, bool align_corners, bool zeros,
                Tensor grad_output, Optional grad_features, Optional grad_offsets, Optional grad_neighbor_logits) {
  if (grad_output.numel() == 0) return;  // the caller fills with zeros
  dispatch_accumulator(type_of(features), [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(features, offsets, neighbor_logits, grad_output, align_corners, zeros);
    CpuParams<T>& params = call.params;
    params.grad_features = fresh_map_of(grad_features);
    params.grad_offsets = fresh_map_of(grad_offsets);
    params.grad_neighbor_logits = fresh_map_of(grad_neighbor_logits);
    if (grad_offsets || grad_neighbor_logits) {
      call.pack();
      call.displacements = aligned_values<T>(call.batch * 2 * params.height * params.width);
      params.displacements = call.displacements.get();
      call.run(loops<T>().displace, params.height, 1);
      call.run(loops<T>().weigh, params.height, kBand);
    }
    if (grad_features) {
      // each thread locates all pixels anew for its channels
      const int64_t threads = torch::stable::get_num_threads();
      const int64_t shares = std::min(ceil_div(threads, call.batch), ceil_div(params.packed(), kBlock));
      const int64_t step = ceil_div(ceil_div(params.packed(), shares), kBlock) * kBlock;
      call.run(loops<T>().spread, params.packed(), step, params.cells() * step);
    }
  });
}

}  // namespace
}  // namespace metricseg::refine

METRICSEG_LIBRARY_IMPL(CPU, m) {
  m.impl("refine_fwd_kernel", TORCH_BOX(&metricseg::refine::fwd_kernel));
  m.impl("refine_bwd_kernel", TORCH_BOX(&metricseg::refine::bwd_kernel));
}
