// Launch sequence of each op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count), clear(pointer, bytes).
#pragma once

#include <algorithm>

#include "gather.cuh"
#include "sample.cuh"

namespace metricseg::anchors {

template <typename Device>
void sample_anchors(Device& device, const SampleParams& p) {
  const int64_t cells = p.cells(), most = p.most_cells(), pixels = p.pixels();
  auto* have = device.template scratch<unsigned>(cells + 4);  // and two words of 8 bytes for `bad`
  const Scratch s{have + 4,
                  reinterpret_cast<Count*>(have),
                  device.template scratch<int>(cells),
                  device.template scratch<Chosen>(most),
                  device.template scratch<unsigned>(most),
                  device.template scratch<int64_t>(1),
                  device.template scratch<Candidate>(capacity(p.rules.max_samples, most))};
  device.clear(have, (cells + 4) * sizeof(unsigned));
  if (pixels > 0) device.launch(count_kernel, ceil_div(pixels, kThreads * kRun), kThreads, 0, p, s);
  device.launch(plan_kernel, 1, kPlanThreads, 0, p, s);
  if (pixels == 0 || most == 0) return;
  device.launch(collect_kernel, ceil_div(pixels, kThreads), kThreads, 0, p, s);
  const int64_t fullest = capacity(std::min(p.rules.max_samples, p.rules.max_views));
  const int parts = static_cast<int>(std::clamp<int64_t>(ceil_div(fullest, kThreads), 1, 64));
  device.launch(place_kernel, most * parts, kThreads, 0, p, s, parts);
}

// A thread per channel, up to 256.
inline int threads_for(int64_t channels) {
  return static_cast<int>(std::clamp<int64_t>(ceil_div(channels, kWarp) * kWarp, kWarp, 256));
}

template <typename T, typename Device>
void gather_pixels_fwd(Device& device, const GatherParams<T>& p) {
  if (p.count > 0) device.launch(gather_fwd_kernel<T>, p.count, threads_for(p.channels), 0, p);
}

template <typename T, typename Device>
void gather_pixels_bwd(Device& device, const GatherParams<T>& p) {
  device.clear(p.features.data, p.bytes());
  if (p.count > 0) device.launch(gather_bwd_kernel<T>, p.count, threads_for(p.channels), 0, p);
}

}  // namespace metricseg::anchors
