// Kernels of the focal family: interpolation, loss, counts and gradient in one pass over the labels.
//
// walk_kernel    one block of 128 threads per tile of cells (walk.cuh; problem.h chooses it). 5 KT values a thread in
//                registers, 3 KT without gradient; shared memory 16 KB at K = 19, 40 KB at K = 150, 0 at ratio 1.
// pixel_kernel   one thread per pixel, for more classes than a warp holds: leaves the statistics of the softmax to
//                walk_kernel, whose blocks then own a span of classes each.
// finish_kernel  one block: partial sums -> loss and totals, in fixed order. Instructions: docs/kernels/focal.md.
#pragma once

#include "forms.cuh"

namespace metricseg::focal {

constexpr BadLabels kNoBadLabels{0, std::numeric_limits<long long>::min()};

__device__ __forceinline__ void write_partial(const Sums& sums, const BadLabels& bad, double* partial) {
  double values[] = {sums.loss, static_cast<double>(sums.valid), sums.weight, static_cast<double>(sums.correct)};
  block_reduce(values, [](int, double a, double b) { return a + b; });
  if (threadIdx.x != 0) return;
  partial += blockIdx.x * static_cast<int64_t>(kSums);
  for (int i = 0; i < 4; ++i) partial[i] = values[i];
  partial[4] = bad.count;
  partial[5] = static_cast<double>(bad.worst);
}

template <typename T, int KT, bool Grad, template <typename, int, bool> class Form>
__global__ void __launch_bounds__(kThreads, resident_blocks<T>(KT, Grad))
    walk_kernel(const Problem<T> p, const Plan plan) {
  __shared__ Tile tile;
  __shared__ Chunk chunk;
  const Room<T> room{plan};
  __shared__ BadLabels bad;
  Form<T, KT, Grad> form(p, bad);
  if (threadIdx.x == 0) {
    bad = kNoBadLabels;
    tile = tile_at(plan, p.y, p.x, blockIdx.x);
    chunk = first_chunk(plan, p.x, tile);
  }
  __syncthreads();
  if (!plan.direct) pad_cells(room, p, plan, tile);
  for (;;) {
    const Lane<T> lane = lane_at(p, plan, tile, chunk);
    if (Grad && !plan.direct) tabulate(room, plan, p.x, chunk);
    walk_rows<T, KT, Grad>(room, p, plan, tile, chunk, lane, form);
    __syncthreads();
    if (chunk.x1 == chunk.x_end) break;
    __syncthreads();
    if (threadIdx.x == 0) chunk = next_chunk(plan, p.x, tile, chunk);
    __syncthreads();
  }
  if (p.partial != nullptr) write_partial(form.total(), bad, p.partial);
}

// The logit of one class at one pixel.
template <typename T>
struct Sampler {
  const Problem<T>& p;
  int64_t corner[2][2];  // offsets of the four cells, class 0
  T fy, fx;

  __device__ __forceinline__ Sampler(const Problem<T>& problem, int64_t image, int64_t y, int64_t x) : p(problem) {
    const int64_t cy[2] = {p.y.cell(y), p.y.next(p.y.cell(y))}, cx[2] = {p.x.cell(x), p.x.next(p.x.cell(x))};
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) corner[i][j] = p.input_stride.at(image, 0, cy[i], cx[j]);
    }
    // beyond the last cell both are equal, and 0 would make NaN of an infinity
    fy = cy[0] == cy[1] ? T(0.5) : p.y.template fraction<T>(y);
    fx = cx[0] == cx[1] ? T(0.5) : p.x.template fraction<T>(x);
  }
  template <typename Stored>
  __device__ __forceinline__ T operator()(const Stored* input, int64_t k) const {
    const auto cell = [&](int i, int j) { return widen<T>(input[corner[i][j] + k * p.input_stride.k]); };
    const T upper = blend(p.x, cell(0, 0), cell(0, 1), fx), lower = blend(p.x, cell(1, 0), cell(1, 1), fx);
    return blend(p.y, upper, lower, fy);
  }
};

template <typename T>
__device__ __forceinline__ void settle_pixel(const Problem<T>& p, const SoftmaxParams<T>& c, int64_t pixel, Sums& sums,
                                             BadLabels& bad) {
  const int64_t x = pixel % p.x.labels, y = pixel / p.x.labels % p.y.labels, image = pixel / p.x.labels / p.y.labels;
  const int label = fetch_label(p, image, y, x);
  const Sampler<T> logit(p, image, y, x);
  T max = -std::numeric_limits<T>::infinity(), target = 0, rest = 0, weighted = 0;
  int best_class = 0;
  with_storage<T>(p.input, static_cast<Scalar>(p.input_type), [&](auto* input) {
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
    if (label >= 0) target = logit(input, label);
#pragma unroll 4
    for (int k = 0; k < p.classes; ++k) {
      const T e = exp_nonpositive(logit(input, k) - max);
      rest += k == label ? T(0) : e;
    }
    if (c.smoothing == T(0)) return;
    for (int k = 0; k < p.classes; ++k) {
      weighted += (p.weight == nullptr ? T(1) : p.weight[k]) * (max - logit(input, k));
    }
  });
  Verdict<T> v{};
  if (label >= 0) {
    const T grad_loss = p.grad_loss == nullptr ? T(1) : p.grad_loss[p.grad_loss_stride.at(image, 0, y, x)];
    v = judge(p, c, label, max, rest, max - target, weighted, grad_loss);
    tell(p, v, label, best_class, sums);
  }
  if (label == kBadLabel) bad.add(label_at(p, image, y, x));
  if (p.argmax != nullptr) p.argmax[pixel] = best_class;
  if (p.loss_map != nullptr) p.loss_map[pixel] = map_value(label, v.takes_part, v.loss);
  if (p.pixels != nullptr) p.pixels[pixel] = v.takes_part ? v.gradient : PixelGradient<T>{};
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) pixel_kernel(const Problem<T> p) {
  const SoftmaxParams<T> c{p.gamma, p.smoothing, p.smoothing / static_cast<T>(p.classes), total_weight(p)};
  const int64_t pixels = p.batch * p.y.labels * p.x.labels;
  __shared__ BadLabels bad;
  if (threadIdx.x == 0) bad = kNoBadLabels;
  __syncthreads();
  Sums sums;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < pixels;
       i += gridDim.x * static_cast<int64_t>(blockDim.x)) {
    settle_pixel(p, c, i, sums, bad);
  }
  if (p.partial != nullptr) write_partial(with_weight(p, sums), bad, p.partial);
}

// partial [blocks, kSums] -> loss [] and totals [kSums - 1]
template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const double* partial, int64_t blocks, T* loss, double* totals) {
  double values[kSums] = {0, 0, 0, 0, 0, -std::numeric_limits<double>::infinity()};
  for (int64_t b = threadIdx.x; b < blocks; b += blockDim.x) {
    for (int i = 0; i < kSums - 1; ++i) values[i] += partial[b * kSums + i];
    values[kSums - 1] = fmax(values[kSums - 1], partial[b * kSums + kSums - 1]);
  }
  block_reduce(values, [](int i, double a, double b) { return i == kSums - 1 ? fmax(a, b) : a + b; });
  if (threadIdx.x != 0) return;
  const bool bad = values[kSums - 2] > 0;
  if (loss != nullptr) *loss = bad ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(values[0]);
  if (totals == nullptr) return;
  for (int i = 1; i < kSums - 1; ++i) totals[i - 1] = values[i];
  totals[kSums - 2] = bad ? values[kSums - 1] : 0.0;
}

}  // namespace metricseg::focal
