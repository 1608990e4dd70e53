// Launch sequence of the op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count), limits().
#pragma once

#include <algorithm>
#include <iterator>

#include "kernels.cuh"

namespace metricseg::distill {

// Register tiles that are compiled, odd multiples of 4. One walk can couple at most the classes of 32 threads. For more
// classes, pixel_kernel is launched first. fp64 is for checks, not speed, and is compiled once.
template <typename T>
struct Tiles;
template <>
struct Tiles<float> {
  static constexpr int kSizes[] = {4, 12, 20};
};
template <>
struct Tiles<double> {
  static constexpr int kSizes[] = {4};
};

template <typename T>
constexpr FormTraits kTraits{Tiles<T>::kSizes, std::size(Tiles<T>::kSizes), true, resident_blocks<T>, nullptr};

template <int KT, typename T, typename Device>
void launch_walk(Device& device, const CudaParams<T>& p, const LaunchConfig& config) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (!p.grad) return device.launch(walk_kernel<T, KT, false>, config.blocks, kThreads, config.smem, p, config);
  }
  device.launch(walk_kernel<T, KT, true>, config.blocks, kThreads, config.smem, p, config);
}

template <typename T, typename Device>
void walk(Device& device, const CudaParams<T>& p, const LaunchConfig& config) {
  if constexpr (std::size(Tiles<T>::kSizes) > 1) {
    if (config.kt == 12) return launch_walk<12>(device, p, config);
    if (config.kt == 20) return launch_walk<20>(device, p, config);
  }
  launch_walk<4>(device, p, config);
}

template <typename T, typename Device>
void distill(Device& device, const Params<T>& params) {
  CudaParams<T> p{params};
  p.inverse = T(1) / p.temperature;
  const LaunchConfig config = make_launch_config<T>(params, kTraits<T>, device.limits());
  const bool sums = p.loss_sum != nullptr || p.divisor != nullptr, spans = config.class_chunks > 1;
  const int64_t pixels = p.pixels();
  int64_t blocks = config.blocks;
  if (spans) {  // pixel_kernel forms the sums
    blocks = std::min<int64_t>(ceil_div(pixels, kThreads), 32L * device.limits().multiprocessors);
    if (p.grad) p.stats = device.template scratch<PixelStats<T>>(pixels);
  }
  if (sums) p.partial = device.template scratch<Partial>(blocks);
  CudaParams<T> walked = p;
  if (spans) {
    if (blocks > 0) device.launch(pixel_kernel<T>, blocks, kThreads, 0, p);
    walked.partial = nullptr;
    walked.loss = {};
  }
  if (config.blocks > 0 && (!spans || p.grad)) walk(device, walked, config);
  if (!sums) return;
  device.launch(finish_kernel<T>, 1, kThreads, 0, static_cast<const Partial*>(p.partial), blocks, p.loss_sum,
                p.divisor);
}

}  // namespace metricseg::distill
