// Launch sequence of topk_kernel. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count).
#pragma once

#include <algorithm>

#include "topk.cuh"

namespace metricseg::retrieval {

template <typename T, typename Device>
void topk(Device& device, const TopkParams<T>& p) {
  if (p.query_count == 0) return;
  const TopkLayout l = make_topk_layout(p);
  Best<T>* parts = nullptr;  // lists [parts, Q, k]
  if (l.parts > 1 || !l.shared_lists) parts = device.template scratch<Best<T>>(l.parts * p.query_count * p.k);
  device.launch(part_kernel<T>, ceil_div(p.query_count, kQueries) * l.parts, kThreads, l.smem, p, parts, l);
  if (l.parts == 1) return;
  device.launch(merge_kernel<T>, ceil_div(p.query_count, kMergeThreads / kWarp), kMergeThreads, 0, p, parts, l);
}

}  // namespace metricseg::retrieval
