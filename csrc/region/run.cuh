// Launch sequence of each op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count), limits().
#pragma once

#include <algorithm>
#include <iterator>

#include "kernels.cuh"

namespace metricseg::region {

// Register tiles that are compiled, odd multiples of 4. One walk can couple at most the classes of 32 threads. For more
// classes, stats_kernel is launched first. fp64 is for checks, not speed, and is compiled once.
template <typename T>
struct Tiles;
template <>
struct Tiles<float> {
  static constexpr int kLabels[] = {4, 12, 20, 28}, kOthers[] = {12};
};
template <>
struct Tiles<double> {
  static constexpr int kLabels[] = {4}, kOthers[] = {4};
};

template <typename T, bool Grad>
constexpr auto kFormBytes = Grad ? FormSmem<T>::backward_bytes : FormSmem<T>::forward_bytes;
template <typename T, bool Grad>
constexpr FormTraits kLabelTraits{Tiles<T>::kLabels, std::size(Tiles<T>::kLabels), true, resident_blocks<T>,
                                  kFormBytes<T, Grad>};
template <typename T, bool Grad>
constexpr FormTraits kSoftTraits{Tiles<T>::kOthers, std::size(Tiles<T>::kOthers), true, resident_blocks<T>,
                                 kFormBytes<T, Grad>};
template <typename T, bool Grad>
constexpr FormTraits kSigmoidTraits{Tiles<T>::kOthers, std::size(Tiles<T>::kOthers), false, resident_blocks<T>,
                                    kFormBytes<T, Grad>};

template <int KT, bool Grad, template <typename, int, bool> class Form, typename T, typename Device>
void launch_form(Device& device, const CudaParams<T>& p, const LaunchConfig& config) {
  device.launch(walk_kernel<T, KT, Grad, Form>, config.blocks, kThreads, config.smem, p, config);
}

template <bool Grad, typename T, typename Device>
void launch_labels(Device& device, const CudaParams<T>& p, const LaunchConfig& config) {
  if constexpr (std::size(Tiles<T>::kLabels) == 1) {
    launch_form<4, Grad, LabelForm>(device, p, config);
  } else {
    switch (config.kt) {
      case 4:
        return launch_form<4, Grad, LabelForm>(device, p, config);
      case 12:
        return launch_form<12, Grad, LabelForm>(device, p, config);
      case 20:
        return launch_form<20, Grad, LabelForm>(device, p, config);
      default:
        return launch_form<28, Grad, LabelForm>(device, p, config);
    }
  }
}

template <bool Grad, typename T, typename Device>
LaunchConfig configure(Device& device, const Params<T>& params) {
  const FormTraits& form = !params.softmax  ? kSigmoidTraits<T, Grad>
                           : params.dense() ? kSoftTraits<T, Grad>
                                            : kLabelTraits<T, Grad>;
  return make_launch_config<T>(params, form, device.limits());
}

template <bool Grad, typename T, typename Device>
void walk(Device& device, CudaParams<T> p, const LaunchConfig& config) {
  if (config.blocks == 0) return;
  const int64_t pixels = p.pixels();
  if (p.softmax && config.class_chunks > 1 && pixels > 0) {
    p.stats = device.template scratch<PixelStats<T>>(pixels);
    const int64_t blocks = std::min<int64_t>(ceil_div(pixels, kThreads), 32L * device.limits().multiprocessors);
    device.launch(stats_kernel<T, Grad>, blocks, kThreads, 0, p);
  }
  if (!p.softmax) {
    launch_form<Tiles<T>::kOthers[0], Grad, SigmoidForm>(device, p, config);
  } else if (p.dense()) {
    launch_form<Tiles<T>::kOthers[0], Grad, SoftForm>(device, p, config);
  } else {
    launch_labels<Grad>(device, p, config);
  }
}

template <typename T, typename Device>
void region_fwd(Device& device, const Params<T>& params) {
  CudaParams<T> p{params};
  const LaunchConfig config = configure<false>(device, params);
  p.partial = device.template scratch<double>(config.blocks * (config.span * kSums + kExtras));
  walk<false>(device, p, config);
  const int64_t tiles = config.blocks == 0 ? 0 : int64_t{config.tiles_y} * config.tiles_x;
  const int64_t rows = params.per_image ? params.batch : 1;
  const Partials partials{p.partial,           params.batch, rows,        p.classes,   config.span,
                          config.class_chunks, tiles,        params.sums, params.loss, params.totals};
  const int64_t blocks = rows * ceil_div(partials.numbers(), kNumbers) + 1;
  device.launch(finish_kernel, blocks, kNumbers * kShares, 0, partials);
}

template <typename T, typename Device>
void region_bwd(Device& device, const Params<T>& params) {
  walk<true>(device, CudaParams<T>{params}, configure<true>(device, params));
}

}  // namespace metricseg::region
