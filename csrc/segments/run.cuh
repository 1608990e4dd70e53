// Launch sequence of each op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count), clear(pointer, bytes).
#pragma once

#include "../engines/pixel_rows/label_sums.cuh"
#include "kmeans.cuh"
#include "split.cuh"

namespace metricseg::segments {

template <typename T, typename Device>
void spherical_kmeans(Device& device, const KmeansParams<T>& p, int64_t iterations) {
  const int64_t N = p.pixels();
  if (p.batch * N == 0) return;
  const KmeansLayout l = make_kmeans_layout(p);
  const int64_t padded = int64_t(l.blocks) * kClusters<T>;
  KmeansScratch<T> s{};
  if (p.located()) s.length = device.template scratch<T>(p.batch * N);
  s.weight = device.template scratch<T>(p.batch * N);
  const int64_t tiles = ceil_div(N, kThreads);
  device.launch(start_kernel<T>, p.batch * tiles, kThreads, 0, p, s, static_cast<int>(tiles));
  if (iterations == 0) return;
  s.centers = device.template scratch<T>(p.batch * padded * p.dims());
  s.bias = device.template scratch<T>(p.batch * padded);
  s.sums = device.template scratch<T>(p.batch * l.shares * l.share_values);
  const int columns = static_cast<int>(std::min<int64_t>(ceil_div(p.dims() + 1, kWarp) * kWarp, 256));
  for (int64_t i = 0; i <= iterations; ++i) {
    device.launch(step_kernel<T>, p.batch * l.parts, kThreads, l.smem, p, s, l, i > 0, i < iterations);
    if (i < iterations) device.launch(center_kernel<T>, p.batch * p.clusters, columns, 0, p, s, l);
  }
}

template <typename Device>
void split_by_label(Device& device, const SplitParams& p) {
  const int64_t area = p.area(), blocks = ceil_div(area, kSplitThreads), runs = ceil_div(area, kSplitThreads * kRun);
  SplitScratch s{};
  s.size = 2;
  while (s.size < 2 * area) s.size *= 2;
  s.counts = device.template scratch<unsigned>(p.batch * (1 + int64_t(s.size)));
  s.slots = s.counts + p.batch;
  s.pairs = device.template scratch<unsigned>(p.batch * area);
  s.numbers = device.template scratch<int64_t>(p.batch * s.size);
  device.clear(s.counts, p.batch * (1 + int64_t(s.size)) * sizeof(unsigned));
  if (p.batch * area > 0) {
    device.launch(insert_kernel, p.batch * runs, kSplitThreads, 0, p, s, runs);
    device.launch(rank_kernel, p.batch * blocks, kSplitThreads, 0, p, s, blocks);
  }
  const int64_t all = std::max<int64_t>(ceil_div(p.batch * area, kSplitThreads), 1);
  device.launch(number_kernel, all, kSplitThreads, 0, p, s);
}

}  // namespace metricseg::segments
