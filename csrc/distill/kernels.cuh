// Kernels of the distill family on CUDA: interpolation of two maps, divergence and gradient in one pass over the labels.
//
// walk_kernel    one block of 128 threads per tile of cells of the own map (engines/resized/walk.cuh). Registers of a
//                thread: 6 KT values, 4 KT without gradient.
// pixel_kernel   one thread per pixel, for more classes than a warp holds: writes the loss, and the statistics of both
//                softmaxes for walk_kernel, whose blocks then take a span of classes each.
// finish_kernel  one block: partial sums -> loss and divisor, in fixed order. Derivation: docs/kernels/distill.md.
#pragma once

#include "form.cuh"

namespace metricseg::distill {

__device__ __forceinline__ void write_partial(double loss, int valid, Partial* partial) {
  double values[] = {loss, static_cast<double>(valid)};
  block_reduce(values, [](int, double a, double b) { return a + b; });
  if (threadIdx.x == 0) partial[blockIdx.x] = {values[0], values[1]};
}

template <typename T, int KT, bool Grad>
__global__ void __launch_bounds__(kThreads, resident_blocks<T>(KT, Grad))
    walk_kernel(const CudaParams<T> p, const LaunchConfig config) {
  Form<T, KT, Grad> form(p);
  walk_tile<T, KT, Grad>(p, config, form);
  if (p.partial != nullptr) write_partial(form.loss, form.valid, p.partial);
}

// Both maps at one pixel, four classes at a time: f(k0, z, y).
template <typename T, typename F>
__device__ __forceinline__ void for_classes(const CudaParams<T>& p, int64_t image, const Between<T> (&row)[2],
                                            const Between<T> (&column)[2], F f) {
#pragma unroll 1
  for (int k0 = 0; k0 < p.classes; k0 += 4) {
    T z[4], y[4];
    load_classes(p.input, image, row[0], column[0], k0, p.classes, z);
    load_classes(p.other, image, row[1], column[1], k0, p.classes, y);
    f(k0, z, y);
  }
}

// Sums of many classes, each four of them in T: in fp64, so that the gradient has no bias.
struct LongSums {
  PixelSums<double> sums;

  template <typename T>
  __device__ __forceinline__ void add(const PixelSums<T>& four) {
    sums.sum += static_cast<double>(four.sum);
    sums.other_sum += static_cast<double>(four.other_sum);
    sums.own += static_cast<double>(four.own);
    sums.other += static_cast<double>(four.other);
  }
  template <typename T>
  __device__ __forceinline__ PixelSums<T> as() const {
    return {static_cast<T>(sums.sum), static_cast<T>(sums.other_sum), static_cast<T>(sums.own),
            static_cast<T>(sums.other)};
  }
};

// The loss of a pixel, and its statistics.
template <typename T>
__device__ __forceinline__ T stats_of(const CudaParams<T>& p, int64_t image, int64_t y, int64_t x,
                                      PixelStats<T>& stats) {
  int cells[4] = {};
  const Between<T> row[] = {between<T>(p.y, y, cells[0]), between<T>(p.other_y, y, cells[1])};
  const Between<T> column[] = {between<T>(p.x, x, cells[2]), between<T>(p.other_x, x, cells[3])};
  stats.max = stats.other_max = -std::numeric_limits<T>::infinity();
  for_classes(p, image, row, column, [&](int, const T(&z)[4], const T(&other)[4]) {
    for (int i = 0; i < 4; ++i) {
      stats.max = fmax(stats.max, z[i]);
      stats.other_max = fmax(stats.other_max, other[i]);
    }
  });
  LongSums all;
  for_classes(p, image, row, column, [&](int k0, T(&z)[4], T(&other)[4]) {
    PixelSums<T> four;
    for (int i = 0; i < 4; ++i) add_exponentials(p.kind, stats, p.inverse, k0 + i < p.classes, z[i], other[i], four);
    all.add(four);
  });
  if (p.kind == Kind::js) {
    const PixelSums<T> sums = all.as<T>();
    for_classes(p, image, row, column, [&](int k0, T(&z)[4], T(&other)[4]) {
      PixelSums<T> again, four;
      for (int i = 0; i < 4; ++i) {
        add_exponentials(p.kind, stats, p.inverse, k0 + i < p.classes, z[i], other[i], again);
        add_logarithms(sums.sum, sums.other_sum, z[i], other[i], four);
      }
      all.add(four);
    });
  }
  return finish_pixel(p.kind, all.as<T>(), p.temperature, p.grad_loss_at(image, y, x), stats);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) pixel_kernel(const CudaParams<T> p) {
  const int64_t pixels = p.pixels();
  double loss = 0;
  int valid = 0;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < pixels;
       i += gridDim.x * static_cast<int64_t>(blockDim.x)) {
    const int64_t x = i % p.x.labels, y = i / p.x.labels % p.y.labels, image = i / p.x.labels / p.y.labels;
    PixelStats<T> stats{};
    T value = 0;
    if (p.label_at(p.target.offset(image, 0, y, x)) >= 0) {
      value = stats_of(p, image, y, x, stats);
      loss += static_cast<double>(value);
      ++valid;
    }
    if (p.loss_map() != nullptr) p.loss_map()[i] = value;
    if (p.stats != nullptr) p.stats[i] = stats;
  }
  if (p.partial != nullptr) write_partial(loss, valid, p.partial);
}

// partial [blocks] -> loss [] and divisor [], each or null
template <typename T>
__global__ void __launch_bounds__(kThreads) finish_kernel(const Partial* partial, int64_t blocks, T* loss, T* divisor) {
  double values[] = {0, 0};
  for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x) {
    values[0] += partial[b].loss;
    values[1] += partial[b].valid;
  }
  block_reduce(values, [](int, double a, double b) { return a + b; });
  if (threadIdx.x != 0) return;
  const T divides = divisor != nullptr && values[1] > 0 ? static_cast<T>(values[1]) : T(1);
  if (divisor != nullptr) *divisor = divides;
  if (loss != nullptr) *loss = static_cast<T>(values[0]) / divides;
}

}  // namespace metricseg::distill
