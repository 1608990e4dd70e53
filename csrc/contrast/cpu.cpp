// The contrast family on the CPU: from torch's tensors to a Tile, its units of rows to torch's threads, the columns'
// sums added up in the order of the units.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/simd_choice.h"
#include "../common/host/torch_map.h"
#include "../engines/row_pairs/product_kernel.h"
#include "cpu_tile.h"

namespace metricseg::contrast {
namespace {

const Workers& workers() {
  static const Workers& chosen = METRICSEG_WIDEST;
  return chosen;
}

template <typename T>
T* data_of(const Optional& tensor) {
  return tensor.has_value() ? static_cast<T*>(const_cast<void*>(tensor->const_data_ptr())) : nullptr;
}

// The lowest and highest group of every chunk of columns.
struct Ranges {
  std::vector<int32_t> lowest, highest;

  Ranges(const int32_t* groups, int64_t columns) {
    for (int64_t begin = 0; begin < columns; begin += kChunk) {
      const auto [low, high] = std::minmax_element(groups + begin, groups + std::min(begin + kChunk, columns));
      lowest.push_back(*low);
      highest.push_back(*high);
    }
  }
};

template <typename T>
void run(Tile<T> tile, T* y_sums, int64_t y_sums_stride) {
  const Ranges ranges(tile.y_groups, tile.columns);
  tile.lowest = ranges.lowest.data();
  tile.highest = ranges.highest.data();
  const int64_t units = (tile.rows + kUnitRows - 1) / kUnitRows, unit_values = kStats * tile.columns;
  const auto y_out = aligned_values<T>(y_sums ? units * unit_values : 0);
  const Worker<T> worker = workers().of(T());
  parallel(units, 32768 / (kUnitRows * tile.columns + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      T* const own = y_sums ? y_out.get() + u * unit_values : nullptr;
      if (own) std::fill_n(own, unit_values, T(0));
      worker(tile, u * kUnitRows, std::min((u + 1) * kUnitRows, tile.rows), own);
    }
  });
  if (!y_sums) return;
  parallel(tile.columns, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t u = 0; u < units; ++u) {
      for (int i = 0; i < kStats; ++i) {
        const T* const own = y_out.get() + u * unit_values + i * tile.columns;
        for (int64_t j = begin; j < end; ++j) y_sums[i * y_sums_stride + j] += own[j];
      }
    }
  });
}

template <typename T>
void launch(const Tensor& s, const Tensor& x_groups, const Tensor& y_groups, const Optional& x_ids,
            const Optional& y_ids, const Optional& x_terms, const Optional& y_terms, Form form, Phase phase,
            double temperature, double margin, double positive_margin, bool squared, bool nonzero,
            const Optional& x_out, const Optional& y_out) {
  Tile<T> tile{};
  tile.form = form;
  tile.phase = phase;
  tile.rows = s.size(0);
  tile.columns = s.size(1);
  tile.s = static_cast<T*>(s.mutable_data_ptr());
  tile.x_groups = static_cast<const int32_t*>(x_groups.const_data_ptr());
  tile.y_groups = static_cast<const int32_t*>(y_groups.const_data_ptr());
  tile.x_ids = data_of<int32_t>(x_ids);
  tile.y_ids = data_of<int32_t>(y_ids);
  tile.x_terms = data_of<T>(x_terms);
  tile.y_terms = data_of<T>(y_terms);
  tile.y_stride = y_terms.has_value() ? y_terms->stride(0) : 0;
  tile.x_out = data_of<T>(x_out);
  tile.inv_temperature = static_cast<T>(1 / temperature);
  tile.margin = static_cast<T>(margin);
  tile.positive_margin = static_cast<T>(positive_margin);
  tile.squared = squared;
  tile.nonzero = nonzero;
  run(tile, data_of<T>(y_out), y_out.has_value() ? y_out->stride(0) : 0);
}

void tile_kernel(Tensor s, Tensor x_groups, Tensor y_groups, Optional x_ids, Optional y_ids, Optional x_terms,
                 Optional y_terms, int64_t form, int64_t phase, double temperature, double margin,
                 double positive_margin, bool squared, bool nonzero, Optional x_out, Optional y_out) {
  STD_TORCH_CHECK(s.is_contiguous() && s.size(1) % kMaxLanes == 0 && y_groups.numel() == s.size(1),
                  "metricseg: contrast_tile_kernel takes contiguous rows padded to ", kMaxLanes);
  const auto launcher = is_double(s) ? launch<double> : launch<float>;
  launcher(s, x_groups, y_groups, x_ids, y_ids, x_terms, y_terms, static_cast<Form>(form), static_cast<Phase>(phase),
           temperature, margin, positive_margin, squared, nonzero, x_out, y_out);
}

}  // namespace
}  // namespace metricseg::contrast

METRICSEG_LIBRARY_IMPL(CPU, m) { m.impl("contrast_tile_kernel", TORCH_BOX(&metricseg::contrast::tile_kernel)); }
