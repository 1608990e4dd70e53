// Launch sequence of each op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count), clear(pointer, bytes), limits().
#pragma once

#include <iterator>

#include "kernels.cuh"
#include "select.cuh"

namespace metricseg::focal {

// Register tiles that are compiled, odd multiples of 4. One walk can couple at most the classes of 32 threads. For more
// classes, pixel_kernel is launched first. fp64 is for checks, not speed, and is compiled once.
template <typename T>
struct Tiles;
template <>
struct Tiles<float> {
  static constexpr int kSoftmax[] = {4, 12, 20, 28}, kSigmoid[] = {12};
};
template <>
struct Tiles<double> {
  static constexpr int kSoftmax[] = {4}, kSigmoid[] = {4};
};

template <typename T>
constexpr FormTraits kSoftmaxTraits{Tiles<T>::kSoftmax, std::size(Tiles<T>::kSoftmax), true, resident_blocks<T>,
                                    nullptr};
template <typename T>
constexpr FormTraits kSigmoidTraits{Tiles<T>::kSigmoid, std::size(Tiles<T>::kSigmoid), false, resident_blocks<T>,
                                    nullptr};

template <int KT, template <typename, int, bool> class Form, typename T, typename Device>
void launch_walk(Device& device, const CudaParams<T>& p, const LaunchConfig& config) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (!p.grad) return device.launch(walk_kernel<T, KT, false, Form>, config.blocks, kThreads, config.smem, p, config);
  }
  device.launch(walk_kernel<T, KT, true, Form>, config.blocks, kThreads, config.smem, p, config);
}

template <typename T, typename Device>
void launch_softmax(Device& device, const CudaParams<T>& p, const LaunchConfig& config) {
  if constexpr (std::size(Tiles<T>::kSoftmax) == 1) {
    launch_walk<4, SoftmaxForm>(device, p, config);
  } else {
    switch (config.kt) {
      case 4:
        return launch_walk<4, SoftmaxForm>(device, p, config);
      case 12:
        return launch_walk<12, SoftmaxForm>(device, p, config);
      case 20:
        return launch_walk<20, SoftmaxForm>(device, p, config);
      default:
        return launch_walk<28, SoftmaxForm>(device, p, config);
    }
  }
}

template <typename T>
bool wants_sums(const Params<T>& params) {
  return params.loss_sum != nullptr || params.totals != nullptr;
}

template <typename T, typename Device>
Partial* new_partial(Device& device, const Params<T>& params, int64_t blocks) {
  return wants_sums(params) ? device.template scratch<Partial>(blocks) : nullptr;
}

// Adds the partial sums of `blocks` blocks.
template <typename T, typename Device>
void finish(Device& device, const CudaParams<T>& p, int64_t blocks) {
  if (!wants_sums<T>(p)) return;
  device.launch(finish_kernel<T>, 1, kThreads, 0, static_cast<const Partial*>(p.partial), blocks, p.loss_sum, p.divisor,
                p.by_weight, p.totals);
}

template <typename T, typename Device>
void softmax_focal(Device& device, const Params<T>& params) {
  CudaParams<T> p{params};
  const LaunchConfig config = make_launch_config<T>(params, kSoftmaxTraits<T>, device.limits());
  int64_t blocks = config.blocks;
  if (config.class_chunks > 1) {  // pixel_kernel first: it forms the sums
    const int64_t pixels = p.pixels();
    blocks = std::min<int64_t>(ceil_div(pixels, kThreads), 32L * device.limits().multiprocessors);
    if (p.grad) p.pixel_coefs = device.template scratch<PixelCoefs<T>>(pixels);
  }
  p.partial = new_partial(device, params, blocks);
  CudaParams<T> walk = p;
  if (config.class_chunks > 1) {
    if (blocks > 0) device.launch(pixel_kernel<T>, blocks, kThreads, 0, p);
    walk.partial = nullptr;
  }
  if (config.blocks > 0 && (config.class_chunks == 1 || p.grad)) launch_softmax(device, walk, config);
  finish(device, p, blocks);
}

template <typename T, typename Device>
void sigmoid_focal(Device& device, const Params<T>& params) {
  CudaParams<T> p{params};
  const LaunchConfig config = make_launch_config<T>(params, kSigmoidTraits<T>, device.limits());
  p.partial = new_partial(device, params, config.blocks);
  if (config.blocks > 0) launch_walk<Tiles<T>::kSigmoid[0], SigmoidForm>(device, p, config);
  finish(device, p, config.blocks);
}

template <typename T, typename Device>
void kth_largest(Device& device, const T* values, int64_t n, int64_t k, T most, T* result) {
  if (n <= kFew) return device.launch(select_alone<T>, 1, kAloneThreads, 0, values, n, k, most, result);
  constexpr int kPasses = select_passes<T>();
  auto* histograms = device.template scratch<unsigned long long>(kPasses * kBins);
  auto* states = device.template scratch<SelectState>(kPasses + 1);
  const int64_t blocks = std::clamp<int64_t>(n / (8 * kBins), 1, 8L * device.limits().multiprocessors);
  device.clear(histograms, kPasses * kBins * sizeof(*histograms));
  for (int pass = 0; pass < kPasses; ++pass) {
    device.launch(select_pass<T>, blocks, kBins, 0, values, n, k, pass, histograms, states);
  }
  device.launch(select_finish<T>, 1, kBins, 0, static_cast<const unsigned long long*>(histograms),
                static_cast<const SelectState*>(states), n, k, most, result);
}

}  // namespace metricseg::focal
