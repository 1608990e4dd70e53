// The predict family on the CPU: from torch's tensors to CpuParams, rows of labels to torch's threads. Loops:
// cpu_loops.h, compiled once per vector width.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <mutex>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/simd_choice.h"
#include "../common/host/torch_map.h"
#include "arguments.h"
#include "cpu_params.h"

namespace metricseg::predict {
namespace {

template <typename T>
const Loops<T>& loops() {
  static const Loops<T>& chosen = METRICSEG_WIDEST_OF(T);
  return chosen;
}

// The memory behind Columns.
template <typename T>
struct ColumnTable {
  std::vector<int64_t> first, end;
  std::vector<Index<T>> left, right;
  std::vector<T> fraction;
  bool near = true;

  ColumnTable(const Source& source, int64_t vectors, int64_t lanes)
      : first(vectors), end(vectors), left(vectors * lanes), right(vectors * lanes), fraction(vectors * lanes, T(0.5)) {
    const Axis& axis = source.x;
    std::vector<int64_t> cell(lanes), next(lanes);
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t used = std::min(lanes, axis.labels - v * lanes);
      for (int64_t i = 0; i < used; ++i) {
        const int64_t column = source.column(v * lanes + i);
        const T f = axis.identity() ? T(0) : axis.template fraction<T>(column);
        cell[i] = axis.cell(column);
        // where there is nothing to blend, the same cell twice: a weight of 0 would make NaN of an infinity
        next[i] = f == T(0) ? cell[i] : axis.next(cell[i]);
        if (f != T(0)) fraction[v * lanes + i] = f;
      }
      first[v] = *std::min_element(cell.begin(), cell.begin() + used);
      end[v] = *std::max_element(next.begin(), next.begin() + used) + 1;
      near = near && end[v] - first[v] <= lanes;
      for (int64_t i = 0; i < used; ++i) {
        left[v * lanes + i] = static_cast<Index<T>>(cell[i] - first[v]);
        right[v * lanes + i] = static_cast<Index<T>>(next[i] - first[v]);
      }
    }
  }

  Columns<T> view() const { return {first.data(), end.data(), left.data(), right.data(), fraction.data(), near}; }

  // Cells that `count` vectors read, at most.
  int64_t widest(int64_t count) const {
    int64_t most = 0;
    for (int64_t v = 0; v < static_cast<int64_t>(first.size()); v += count) {
      const int64_t stop = std::min<int64_t>(v + count, first.size());
      most = std::max(most, *std::max_element(end.begin() + v, end.begin() + stop) -
                                *std::min_element(first.begin() + v, first.begin() + stop));
    }
    return most;
  }
};

template <typename T>
void execute(CpuParams<T>& params, const Arguments<Tensor>& a) {
  const int64_t lanes = loops<T>().lanes;
  params.vectors = (params.width + lanes - 1) / lanes;
  std::vector<ColumnTable<T>> tables;
  std::vector<CpuSource<T>> sources;
  for (int m = 0; m < params.maps; ++m) {
    const Source source = a.source(params, m);
    tables.emplace_back(source, params.vectors, lanes);
    sources.push_back({source, tables.back().view()});
    params.cells = std::max(params.cells, tables.back().widest(params.tile()) + kMaxLanes);
  }
  params.sources = sources.data();
  const int64_t per_row = params.width * params.classes * params.maps, K = params.classes;
  std::mutex mutex;
  parallel(params.batch * params.depth * params.height, 65536 / (per_row + 1) + 1, [&](int64_t begin, int64_t end) {
    const auto scratch = aligned_values<T>(params.scratch_values());
    std::vector<int64_t> counts(params.counts ? K * K : 0);
    double bad[2] = {0, 0};
    loops<T>().rows(params, begin, end, scratch.get(), counts.data(), bad);
    if (!params.counts) return;
    const std::lock_guard<std::mutex> guard(mutex);  // sums of integers, the same in any order
    for (int64_t i = 0; i < K * K; ++i) params.counts[i] += counts[i];
    if (bad[0] > 0) params.bad[1] = params.bad[0] == 0 ? bad[1] : std::max(params.bad[1], bad[1]);
    params.bad[0] += bad[0];
  });
}

void run(const Arguments<Tensor>& a) {
  STD_TORCH_CHECK(!a.maps.empty() && a.maps.size() == a.flipped.size() && a.maps.size() == a.shares.size(),
                  "metricseg: as many flags and shares as maps are wanted");
  const int64_t rank = a.maps[0].dim();
  STD_TORCH_CHECK((a.labels ? *a.labels : *a.target).dim() == rank - 1, "metricseg: labels [B, (D,) H, W] are wanted");
  for (const Tensor& map : a.maps) {
    STD_TORCH_CHECK((rank == 4 || rank == 5) && map.dim() == rank && is_floating(type_of(map)) &&
                        type_of(map) == type_of(a.maps[0]),
                    "metricseg: maps [B, K, (d,) h, w] of one floating dtype are wanted");
  }
  for (const Optional& out : {a.labels, a.confidence, a.entropy, a.counts, a.bad}) {
    STD_TORCH_CHECK(!out || out->is_contiguous(), "metricseg: contiguous outputs are wanted");
  }
  dispatch_accumulator(type_of(a.maps[0]), [&](auto zero) {
    CpuParams<decltype(zero)> params{a.params()};
    if (params.counts) std::fill_n(params.counts, int64_t{params.classes} * params.classes, int64_t{0});
    if (params.bad) params.bad[0] = params.bad[1] = 0;
    expect_writes(a.labels);
    expect_writes(a.confidence);
    expect_writes(a.entropy);
    if (params.batch * params.depth * params.height * params.width > 0) execute(params, a);
  });
}

}  // namespace
}  // namespace metricseg::predict

METRICSEG_LIBRARY_IMPL(CPU, m) {
  using namespace metricseg::predict;
  m.impl("predict_labels_kernel", TORCH_BOX((&predict_kernel<metricseg::Tensor, run>)));
  m.impl("confusion_matrix_kernel", TORCH_BOX((&confusion_kernel<metricseg::Tensor, run>)));
}
