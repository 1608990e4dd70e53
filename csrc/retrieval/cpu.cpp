// The retrieval family on the CPU: from torch's tensors to a Tile, its rows to torch's threads.
#include <torch/csrc/stable/tensor.h>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/simd_choice.h"
#include "../common/host/torch_map.h"
#include "cpu_params.h"

namespace metricseg::retrieval {
namespace {

void tile_kernel(Tensor products, Optional valid, int64_t first, Tensor values, Tensor indices) {
  STD_TORCH_CHECK(products.is_contiguous() && values.is_contiguous() && indices.is_contiguous() &&
                      (!valid || (valid->is_contiguous() && valid->numel() == products.size(1))),
                  "metricseg: topk_tile_kernel takes contiguous tensors");
  dispatch_accumulator(type_of(products), [&](auto zero) {
    using T = decltype(zero);
    Tile<T> tile{};
    tile.products = static_cast<const T*>(products.const_data_ptr());
    tile.valid = valid ? static_cast<const bool*>(valid->const_data_ptr()) : nullptr;
    tile.columns = products.size(1);
    tile.k = values.size(1);
    tile.first = first;
    tile.values = static_cast<T*>(values.mutable_data_ptr());
    tile.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
    static const Loops<T>& worker = METRICSEG_WIDEST_OF(T);
    parallel(products.size(0), 65536 / (tile.columns + 1) + 1,
             [&](int64_t begin, int64_t end) { worker(tile, begin, end); });
  });
}

}  // namespace
}  // namespace metricseg::retrieval

METRICSEG_LIBRARY_IMPL(CPU, m) { m.impl("topk_tile_kernel", TORCH_BOX(&metricseg::retrieval::tile_kernel)); }
