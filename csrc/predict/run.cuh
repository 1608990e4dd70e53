// Launch sequence of each op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), clear(pointer, bytes), limits().
#pragma once

#include <algorithm>

#include "labels.cuh"

namespace metricseg::predict {

constexpr int64_t kCountBytes = 48 << 10;  // at most, of counts in shared memory
constexpr int64_t kCountingBlocks = 16;    // of a multiprocessor: each adds its counts to those of all
constexpr int64_t kMostBlocks = int64_t(1) << 30;

// Label rows that share the rows of cells between which they lie: as many of 1, 2 and 4 as an interval has.
inline int shared_rows(const CudaParams& p, const Axis& axis, Rows& rows) {
  const int64_t each = axis.mul > 0 ? std::min(ceil_div(axis.den, axis.mul), axis.labels) : axis.labels;
  const int count = p.averages() || axis.cells >= axis.labels || each < 2 ? 1 : each < 3 ? 2 : 4;
  rows.parts = static_cast<int>(count == 1 ? 1 : ceil_div(each, count));
  rows.groups = count == 1 ? p.height : (axis.cells + 1) * rows.parts;
  return count;
}

template <typename T, typename Device>
void predict(Device& device, const CudaParams& p) {
  if (p.counts) {
    device.clear(p.counts, int64_t{p.classes} * p.classes * sizeof(int64_t));
    device.clear(p.bad, 2 * sizeof(double));
  }
  if (p.batch * p.height * p.width == 0) return;
  Rows rows{};
  const int count = shared_rows(p, p.y(0), rows);
  rows.tiles = ceil_div(p.width, kThreads);
  rows.all = p.batch * rows.groups * rows.tiles;
  int64_t smem = p.averages() ? p.maps * (kThreads * sizeof(PixelOfMap<T>) + sizeof(RowOfMap<T>)) : 0;
  const int64_t counted = int64_t{p.classes} * p.classes * sizeof(unsigned);
  rows.shared_at = p.counts && counted <= kCountBytes && smem + counted <= device.limits().smem ? smem : -1;
  if (rows.shared_at >= 0) smem += counted;
  const int64_t most = p.counts ? kCountingBlocks * device.limits().multiprocessors : kMostBlocks;
  const int64_t blocks = std::min(rows.all, most);
  if (p.averages()) {
    device.launch(best_probability_kernel<T>, blocks, kThreads, smem, p, rows);
  } else if (count == 4) {
    device.launch(best_logit_kernel<T, 4>, blocks, kThreads, smem, p, rows);
  } else if (count == 2) {
    device.launch(best_logit_kernel<T, 2>, blocks, kThreads, smem, p, rows);
  } else {
    device.launch(best_logit_kernel<T, 1>, blocks, kThreads, smem, p, rows);
  }
}

}  // namespace metricseg::predict
