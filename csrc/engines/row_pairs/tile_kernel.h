// One phase of a form on one tile: from torch's tensors to a Tile, its units of rows to torch's threads, the sums of
// the columns added up in the order of the units. The source file of a family that includes this header implements an
// op by `tile_kernel`, with its own table of epilogues.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../../common/host/library.h"
#include "../../common/host/parallel.h"
#include "../../common/host/simd_choice.h"
#include "../../common/host/torch_map.h"
#include "tile.h"

namespace metricseg::row_pairs {

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
void run_tile(const Epilogue<T>& epilogue, Tile<T> tile, T* y_out, int64_t y_out_row) {
  const Ranges ranges(tile.y_groups, tile.columns);
  tile.lowest = ranges.lowest.data();
  tile.highest = ranges.highest.data();
  const int64_t units = (tile.rows + kTileUnit - 1) / kTileUnit, unit_values = epilogue.outs * tile.columns;
  const auto sums = aligned_values<T>(y_out ? units * unit_values : 0);
  parallel(units, 32768 / (kTileUnit * tile.columns + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) {
      Tile<T> unit = tile;
      if (y_out) std::fill_n(unit.y_out = sums.get() + u * unit_values, unit_values, T(0));
      epilogue.run(unit, u * kTileUnit, std::min((u + 1) * kTileUnit, tile.rows));
    }
  });
  if (!y_out) return;
  parallel(tile.columns, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t u = 0; u < units; ++u) {
      for (int i = 0; i < epilogue.outs; ++i) {
        const T* const sum = sums.get() + u * unit_values + i * tile.columns;
        for (int64_t j = begin; j < end; ++j) y_out[i * y_out_row + j] += sum[j];
      }
    }
  });
}

template <typename T>
const Epilogue<T>& find(const Epilogue<T>* table, const std::string& name) {
  while (table->name && name != table->name) ++table;
  STD_TORCH_CHECK(table->name, "metricseg: there is no epilogue ", name);
  return *table;
}

// Sides: groups, ids and weights of the rows; coefficients [rows, n], sums [rows, outs] of the rows; the latter two
// transposed for columns.
template <class Table>
void tile_kernel(Tensor products, std::string name, std::vector<double> constants, Tensor x_groups, Tensor y_groups,
                 Optional x_ids, Optional y_ids, Optional x_weights, Optional y_weights, Optional x_coefs,
                 Optional y_coefs, Optional x_out, Optional y_out) {
  STD_TORCH_CHECK(products.is_contiguous() && products.size(1) % kMaxLanes == 0 &&
                      y_groups.numel() == products.size(1) && x_groups.numel() == products.size(0),
                  "metricseg: a tile has contiguous rows padded to ", kMaxLanes);
  dispatch_accumulator(type_of(products), [&](auto zero) {
    using T = decltype(zero);
    const Epilogue<T>& epilogue = find(Table::epilogues(zero), name);
    STD_TORCH_CHECK(static_cast<int>(constants.size()) == epilogue.constants, "metricseg: ", name, " takes ",
                    epilogue.constants, " constants");
    STD_TORCH_CHECK(
        (!x_coefs || x_coefs->size(1) == epilogue.coefs) && (!y_coefs || y_coefs->size(0) == epilogue.coefs),
        "metricseg: ", name, " takes ", epilogue.coefs, " coefficients");
    STD_TORCH_CHECK((!x_out || x_out->size(1) == epilogue.outs) && (!y_out || y_out->size(0) == epilogue.outs),
                    "metricseg: ", name, " adds to ", epilogue.outs, " sums");
    Tile<T> tile{};
    tile.rows = products.size(0);
    tile.columns = products.size(1);
    tile.s = static_cast<T*>(products.mutable_data_ptr());
    tile.x_groups = static_cast<const int32_t*>(x_groups.const_data_ptr());
    tile.y_groups = static_cast<const int32_t*>(y_groups.const_data_ptr());
    tile.x_ids = data_of<int32_t>(x_ids);
    tile.y_ids = data_of<int32_t>(y_ids);
    tile.x_weights = data_of<T>(x_weights);
    tile.y_weights = data_of<T>(y_weights);
    tile.x_coefs = data_of<T>(x_coefs);
    tile.x_coefs_row = x_coefs ? x_coefs->stride(0) : 0;
    tile.y_coefs = data_of<T>(y_coefs);
    tile.y_coefs_row = y_coefs ? y_coefs->stride(0) : 0;
    tile.x_out = data_of<T>(x_out);
    tile.x_out_row = x_out ? x_out->stride(0) : 0;
    tile.constants = constants.data();
    run_tile(epilogue, tile, data_of<T>(y_out), y_out ? y_out->stride(0) : 0);
  });
}

}  // namespace metricseg::row_pairs
