// Launch sequence of each op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count), limits().
#pragma once

#include <iterator>

#include "kernels.cuh"
#include "select.cuh"

namespace metricseg::focal {

// Register tiles that are compiled, odd multiples of 4. 32 lanes of them are the most classes that one walk can couple;
// beyond that pixel_kernel goes first. fp64 serves checks, not speed, and is compiled once.
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

template <int KT, template <typename, int, bool> class Form, typename T, typename Device>
void launch_walk(Device& device, const Problem<T>& p, const Plan& plan) {
  if (p.grad != nullptr) {
    device.launch(walk_kernel<T, KT, true, Form>, plan.blocks, kThreads, plan.shared, p, plan);
  } else {
    device.launch(walk_kernel<T, KT, false, Form>, plan.blocks, kThreads, plan.shared, p, plan);
  }
}

template <typename T, typename Device>
void launch_softmax(Device& device, const Problem<T>& p, const Plan& plan) {
  if constexpr (std::size(Tiles<T>::kSoftmax) == 1) {
    launch_walk<4, SoftmaxForm>(device, p, plan);
  } else {
    switch (plan.kt) {
      case 4:
        return launch_walk<4, SoftmaxForm>(device, p, plan);
      case 12:
        return launch_walk<12, SoftmaxForm>(device, p, plan);
      case 20:
        return launch_walk<20, SoftmaxForm>(device, p, plan);
      default:
        return launch_walk<28, SoftmaxForm>(device, p, plan);
    }
  }
}

// Scratch for the partial sums, if a total is needed, and the kernel that adds them.
template <typename T, typename Device>
struct Totals {
  Device& device;
  T* loss;         // [] or null
  double* totals;  // [kSums - 1] or null
  double* partial = nullptr;
  int64_t blocks = 0;

  double* make_room(int64_t count) {
    blocks = count;
    if (loss != nullptr || totals != nullptr) partial = device.template scratch<double>(count * kSums);
    return partial;
  }
  void finish() {
    if (loss == nullptr && totals == nullptr) return;
    device.launch(finish_kernel<T>, 1, kThreads, 0, static_cast<const double*>(partial), blocks, loss, totals);
  }
};

// loss [], totals [5]: null if not wanted; the other outputs are in p.
template <typename T, typename Device>
void softmax_focal(Device& device, Problem<T> p, T* loss, double* totals) {
  Totals<T, Device> sums{device, loss, totals};
  const Plan plan = make_plan(p, Tiles<T>::kSoftmax, std::size(Tiles<T>::kSoftmax), true, device.limits());
  if (plan.class_chunks == 1) {
    p.partial = sums.make_room(plan.blocks);
    if (plan.blocks > 0) launch_softmax(device, p, plan);
  } else {
    const int64_t pixels = p.batch * p.y.labels * p.x.labels;
    const int64_t blocks = std::min<int64_t>((pixels + kThreads - 1) / kThreads, 32L * device.limits().multiprocessors);
    Problem<T> statistics = p;
    statistics.partial = sums.make_room(blocks);
    statistics.pixels = p.grad != nullptr ? device.template scratch<PixelGradient<T>>(pixels) : nullptr;
    if (blocks > 0) device.launch(pixel_kernel<T>, blocks, kThreads, 0, statistics);
    p.pixels = statistics.pixels;
    if (p.grad != nullptr && plan.blocks > 0) launch_softmax(device, p, plan);
  }
  sums.finish();
}

template <typename T, typename Device>
void sigmoid_focal(Device& device, Problem<T> p, T* loss, double* totals) {
  Totals<T, Device> sums{device, loss, totals};
  const Plan plan = make_plan(p, Tiles<T>::kSigmoid, std::size(Tiles<T>::kSigmoid), false, device.limits());
  p.partial = sums.make_room(plan.blocks);
  if (plan.blocks > 0) launch_walk<Tiles<T>::kSigmoid[0], SigmoidForm>(device, p, plan);
  sums.finish();
}

template <typename T, typename Device>
void kth_largest(Device& device, const T* values, int64_t n, int64_t k, T* result) {
  constexpr int kPasses = select_passes<T>();
  auto* histograms = device.template scratch<unsigned long long>(kPasses * kBins);
  auto* states = device.template scratch<SelectState>(kPasses + 1);
  const int64_t blocks = std::clamp<int64_t>(n / (8 * kBins), 1, 8L * device.limits().multiprocessors);
  device.launch(select_clear, 1, kBins, 0, histograms, kPasses * kBins);
  for (int pass = 0; pass < kPasses; ++pass) {
    device.launch(select_pass<T>, blocks, kBins, 0, values, n, k, pass, histograms, states);
  }
  device.launch(select_finish<T>, 1, kBins, 0, static_cast<const unsigned long long*>(histograms),
                static_cast<const SelectState*>(states), n, k, result);
}

}  // namespace metricseg::focal
