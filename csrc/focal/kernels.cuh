// Kernels of the focal family: interpolation, loss, counts and gradient in one pass over the labels.
//
// walk_kernel    one block of 128 threads per tile of cells (engines/resized/walk.cuh; launch_config.h chooses it).
//                Registers of a thread: 5 KT values, 3 KT without gradient. smem: 16 KB at K = 19, 40 KB at K = 150, 0
//                at ratio 1.
// pixel_kernel   one thread per pixel, for more classes than a warp holds: writes the statistics of the softmax for
//                walk_kernel, whose blocks then take a span of classes each.
// finish_kernel  one block: partial sums -> loss and totals, in fixed order. Instructions: docs/kernels/focal.md.
#pragma once

#include "forms.cuh"

namespace metricseg::focal {

__device__ __forceinline__ void write_partial(const Accumulator& sums, const BadLabels& bad, Partial* partial) {
  double values[] = {sums.loss, static_cast<double>(sums.valid), sums.weight, static_cast<double>(sums.correct)};
  block_reduce(values, [](int, double a, double b) { return a + b; });
  if (threadIdx.x != 0) return;
  const auto [loss, valid, weight, correct] = values;
  partial[blockIdx.x] = {loss, valid, weight, correct, static_cast<double>(bad.count), static_cast<double>(bad.worst)};
}

template <typename T, int KT, bool Grad, template <typename, int, bool> class Form>
__global__ void __launch_bounds__(kThreads, resident_blocks<T>(KT, Grad))
    walk_kernel(const CudaParams<T> p, const LaunchConfig config) {
  __shared__ BadLabels bad;
  Form<T, KT, Grad> form(p, bad);
  if (threadIdx.x == 0) bad = kNoBadLabels;
  walk_tile<T, KT, Grad>(p, config, form);
  if (p.partial != nullptr) write_partial(form.total(), bad, p.partial);
}

template <typename T>
__device__ __forceinline__ void process_pixel(const CudaParams<T>& p, const SoftmaxParams<T>& c, int64_t pixel,
                                              Accumulator& sums, BadLabels& bad) {
  const int64_t x = pixel % p.x.labels, y = pixel / p.x.labels % p.y.labels, image = pixel / p.x.labels / p.y.labels;
  const int label = fetch_class(p, p.classes, p.target.offset(image, 0, y, x));
  const Sampler<T, CudaParams<T>> logit(p, image, y, x);
  T max = -std::numeric_limits<T>::infinity(), target_logit = 0, rest = 0, weighted = 0;
  int best_class = 0;
  with_storage<T>(p.input, [&](auto* input) {
    T best = logit(input, 0);
#pragma unroll 4
    for (int k = 0; k < p.classes; ++k) {
      const T z = logit(input, k);
      max = fmax(max, z);
      if (z > best || (z != z && best == best)) {
        best = z;
        best_class = k;
      }
    }
    if (label >= 0) target_logit = logit(input, label);
#pragma unroll 4
    for (int k = 0; k < p.classes; ++k) {
      const T e = exp_nonpositive(logit(input, k) - max);
      rest += k == label ? T(0) : e;
    }
    if (c.label_smoothing == T(0)) return;
    for (int k = 0; k < p.classes; ++k) {
      weighted += (p.weight == nullptr ? T(1) : p.weight[k]) * (max - logit(input, k));
    }
  });
  PixelLoss<T> v{};
  if (label >= 0) {
    const T grad_loss = p.grad_loss_at(image, 0, y, x);
    v = pixel_loss(p, c, label, {max, rest, max - target_logit, weighted}, grad_loss);
    accumulate(p, v, label, best_class, sums);
  }
  if (label == kOutOfRange) bad.add(label_at(p.target, image, y, x));
  if (p.argmax_map() != nullptr) p.argmax_map()[pixel] = best_class;
  if (p.loss_map() != nullptr) p.loss_map()[pixel] = map_value(label, v.takes_part, v.loss, p.ignored_loss);
  if (p.pixel_coefs != nullptr) p.pixel_coefs[pixel] = v.takes_part ? v.coefs : PixelCoefs<T>{};
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) pixel_kernel(const CudaParams<T> p) {
  const SoftmaxParams<T> c = softmax_params<T>(p);
  const int64_t pixels = p.pixels();
  __shared__ BadLabels bad;
  if (threadIdx.x == 0) bad = kNoBadLabels;
  __syncthreads();
  Accumulator sums;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < pixels;
       i += gridDim.x * static_cast<int64_t>(blockDim.x)) {
    process_pixel(p, c, i, sums, bad);
  }
  if (p.partial != nullptr) write_partial(with_weight(p, sums), bad, p.partial);
}

// partial [blocks] -> loss [], divisor [] and totals [kTotals]
template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const Partial* partial, int64_t blocks, T* loss, T* divisor, bool by_weight, double* totals) {
  Partial sum{0, 0, 0, 0, 0, -std::numeric_limits<double>::infinity()};
  for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x) {
    const Partial part = partial[b];
    sum.loss += part.loss;
    sum.valid += part.valid;
    sum.weight += part.weight;
    sum.correct += part.correct;
    sum.bad += part.bad;
    sum.bad_label = fmax(sum.bad_label, part.bad_label);
  }
  double values[] = {sum.loss, sum.valid, sum.weight, sum.correct, sum.bad, sum.bad_label};
  block_reduce(values, [](int i, double a, double b) { return i == kTotals ? fmax(a, b) : a + b; });
  if (threadIdx.x != 0) return;
  const bool bad = values[kTotals - 1] > 0;
  const double count = by_weight ? values[2] : values[1];
  const T divides = divisor != nullptr && count > 0 ? static_cast<T>(count) : T(1);
  if (divisor != nullptr) *divisor = divides;
  if (loss != nullptr) *loss = bad ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(values[0]) / divides;
  if (totals == nullptr) return;
  for (int i = 1; i < kTotals; ++i) totals[i - 1] = values[i];
  totals[kTotals - 1] = bad ? values[kTotals] : 0.0;
}

}  // namespace metricseg::focal
