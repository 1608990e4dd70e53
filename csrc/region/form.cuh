// What the forms of the region family share (forms.cuh): sums of a thread and of the block, and the softmax of a pixel. A
// thread keeps P of its classes in registers, and I and Y of its classes and its column in shared memory, each for up to
// 32 rows in T. Then the block adds the columns in fp64, in a fixed order. Derivation: docs/kernels/region.md.
#pragma once

#include "../engines/resized/pixels.cuh"
#include "params.h"

namespace metricseg::region {

using namespace resized;

// The softmax of one pixel. rest, dot: over the classes, or over those that are not the label.
template <typename T>
struct PixelStats {
  T max, rest;     // max z, sum of exp(z_k - max)
  T gap;           // max - z_t
  T weighted_gap;  // sum_k w_k (max - z_k), with label smoothing
  T dot;           // backward: sum of exp(z_k - max) dL/dp_k
};

template <typename T>
struct CudaParams : Params<T> {
  double* partial = nullptr;       // forward: [blocks, span kSums + kExtras]
  PixelStats<T>* stats = nullptr;  // [B, H, W] of stats_kernel, or null

  // dL/dI of a class of an image, followed by dL/dP
  METRICSEG_HD const double* class_grad(int64_t image, int64_t k) const {
    return this->grad_sums + ((this->per_image ? image : 0) * this->classes + k) * kSums;
  }
};

// Blocks on a multiprocessor, so that the register tile fits: 128, 168 or 255 registers a thread.
template <typename T>
constexpr int resident_blocks(int kt, bool grad) {
  return sizeof(T) == 8 || (grad && kt > 20) ? 2 : kt > 12 ? 3 : 4;
}

// Shared memory of a form, after that of the walk. [span, columns]: neighboring threads use different banks.
template <typename T>
struct FormSmem {
  const LaunchConfig& config;

  __device__ __forceinline__ unsigned char* at(int64_t bytes) const {
    return shared_memory<unsigned char>() + config.form_at + bytes;
  }
  // forward: [span, kSums] sums in fp64, then [span, columns] I and Y of up to kRows rows
  __device__ __forceinline__ double* totals() const { return reinterpret_cast<double*>(at(0)); }
  __device__ __forceinline__ T* hits() const {
    return reinterpret_cast<T*>(at(int64_t{config.span} * kSums * sizeof(double)));
  }
  __device__ __forceinline__ T* count() const { return hits() + config.span * config.columns; }
  // backward: [span] dL/dP, dL/dI
  __device__ __forceinline__ T* mass_grad() const { return reinterpret_cast<T*>(at(0)); }
  __device__ __forceinline__ T* hit_grad() const { return mass_grad() + config.span; }

  static int64_t forward_bytes(const LaunchConfig& c) {
    return c.span * (int64_t{kSums} * sizeof(double) + 2 * c.columns * sizeof(T));
  }
  static int64_t backward_bytes(const LaunchConfig& c) { return c.span * int64_t{2 * sizeof(T)}; }
};

// The label of a pixel or a code; of a soft target 0, or kIgnored if its first channel is ignore_index.
template <typename T>
__device__ __forceinline__ int fetch_label(const CudaParams<T>& p, int64_t offset) {
  return fetch_class(p, p.label_classes(), offset);
}
template <typename T>
__device__ __forceinline__ int fetch_soft(const CudaParams<T>& p, int64_t offset) {
  return load_float<T>(p.target, offset) == static_cast<T>(p.ignore_index) ? kIgnored : 0;
}

// y_k of a soft target; NaN if it is negative
template <typename T>
__device__ __forceinline__ T soft_target(const CudaParams<T>& p, int64_t image, int64_t k, int64_t y, int64_t x) {
  const T value = load_float<T>(p.target, p.target.offset(image, k, y, x));
  return value >= T(0) ? value : std::numeric_limits<T>::quiet_NaN();
}

template <typename T>
__device__ __forceinline__ T class_weight(const CudaParams<T>& p, int k) {
  return p.weight == nullptr ? T(1) : p.weight[k];
}

template <typename T, int KT, bool Grad>
struct Form {
  static constexpr int kRows = 32;  // that are added in T

  const CudaParams<T>& p;
  const LaunchConfig& config;
  const FormSmem<T> smem;
  BadLabels& bad;
  T mass[KT];  // P
  double loss;
  int valid, rows;

  __device__ __forceinline__ Form(const CudaParams<T>& params, const LaunchConfig& config, BadLabels& bad)
      : p(params), config(config), smem{config}, bad(bad), loss(0), valid(0), rows(0) {
#pragma unroll
    for (int k = 0; k < KT; ++k) mass[k] = T(0);
  }

  // Before the first barrier of the walk.
  __device__ __forceinline__ void begin() const {
    if constexpr (Grad) {
      const Tile tile = tile_at(config, p.y, p.x, blockIdx.x);
      for (int k = threadIdx.x; k < config.span; k += blockDim.x) {
        const bool exists = tile.class0 + k < p.classes;
        const double* grad = p.class_grad(tile.image, exists ? tile.class0 + k : 0);
        smem.hit_grad()[k] = exists ? static_cast<T>(grad[0]) : T(0);
        smem.mass_grad()[k] = exists ? static_cast<T>(grad[1]) : T(0);
      }
    } else {
      for (int i = threadIdx.x; i < config.span * kSums; i += blockDim.x) smem.totals()[i] = 0;
      clear_columns();
    }
  }

  // The place of I and Y of the thread's class k, for its label column. Computed when it is used: registers are few.
  __device__ __forceinline__ int place(int k) const {
    const int groups = config.groups, thread = opaque(static_cast<int>(threadIdx.x));
    return (thread % groups * KT + k) * config.columns + thread / groups;
  }

  __device__ __forceinline__ void clear_columns() const {
    int at = place(0);
    for (int k = 0; k < KT; ++k, at += config.columns) smem.hits()[at] = smem.count()[at] = T(0);
  }

  __device__ __forceinline__ void add_target(int k, T hit, T count) const {
    const int at = place(k);
    smem.hits()[at] += hit;
    smem.count()[at] += count;
  }

  // Counts the pixel in forward. Returns whether one of the warp's takes part.
  __device__ __forceinline__ bool count_pixel(const Fragment<T>& fragment, const LabelRow<T>& at) {
    if (!Grad && fragment.class0 == 0) {
      valid += at.label >= 0;
      if (at.label == kOutOfRange) bad.add(label_at(p.target, at.image, at.y, fragment.x));
    }
    return !__all_sync(kFullMask, at.label < 0);
  }

  __device__ __forceinline__ void end_row() {
    if (!Grad && ++rows == kRows) add_rows();
  }

  // totals[k, sum] += the columns of values [span, columns], in fp64. The same thread adds to a class each time.
  __device__ __forceinline__ void add_columns(const T* values, int sum) const {
    const int columns = config.columns, lanes = min(columns, kWarp), lane = threadIdx.x % lanes;
    for (int k0 = 0; k0 < config.span; k0 += kThreads / lanes) {
      const int k = k0 + threadIdx.x / lanes;
      double total = 0;
      if (k < config.span) {
        for (int c = lane; c < columns; c += lanes) total += static_cast<double>(values[k * columns + c]);
      }
      total = group_sum(total, lanes);
      if (k < config.span && lane == 0) smem.totals()[k * kSums + sum] += total;
    }
  }

  // The sums of the rows since the last call, by all threads of the block.
  __device__ __forceinline__ void add_rows() {
    __syncthreads();
    add_columns(smem.hits(), 0);
    add_columns(smem.count(), 2);
    __syncthreads();
    int at = place(0);
#pragma unroll
    for (int k = 0; k < KT; ++k, at += config.columns) {
      smem.hits()[at] = mass[k];
      mass[k] = T(0);
    }
    __syncthreads();
    add_columns(smem.hits(), 1);
    __syncthreads();
    clear_columns();
    rows = 0;
  }

  __device__ __forceinline__ void write_partial() {
    const int64_t sums = int64_t{config.span} * kSums;
    double* const partial = p.partial + blockIdx.x * (sums + kExtras);
    add_rows();
    for (int i = threadIdx.x; i < sums; i += blockDim.x) partial[i] = smem.totals()[i];
    double values[] = {loss, static_cast<double>(valid)};
    block_reduce(values, [](int, double a, double b) { return a + b; });
    if (threadIdx.x != 0) return;
    partial[sums + kLoss] = values[0];
    partial[sums + kValid] = values[1];
    partial[sums + kBad] = bad.count;
    partial[sums + kBadLabel] =
        bad.count > 0 ? static_cast<double>(bad.worst) : -std::numeric_limits<double>::infinity();
  }

  // z -> exp(z - max); returns the statistics of the pixel, without dot if there are none of stats_kernel. target: the
  // place of the label among the thread's classes.
  __device__ __forceinline__ PixelStats<T> normalize(int groups, const Fragment<T>& fragment, const LabelRow<T>& at,
                                                     int target, bool smooth, T (&z)[KT]) const {
    PixelStats<T> stats{};
    if (p.stats != nullptr) {
      if (at.label >= 0) stats = p.stats[(at.image * p.y.labels + opaque(at.y)) * p.x.labels + fragment.x];
#pragma unroll
      for (int k = 0; k < KT; ++k) z[k] = exp_nonpositive(z[k] - stats.max);
      return stats;
    }
    stats.max = z[0];
#pragma unroll
    for (int k = 1; k < KT; ++k) stats.max = fmax(stats.max, z[k]);
    stats.max = group_max(stats.max, groups);
    if (smooth) {
#pragma unroll
      for (int k = 0; k < KT; ++k) {
        const int cls = fragment.class0 + k;
        if (cls < p.classes) stats.weighted_gap += class_weight(p, cls) * (stats.max - z[k]);
      }
      stats.weighted_gap = group_sum(stats.weighted_gap, groups);
    }
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      z[k] -= stats.max;
      if (k == target) stats.gap = -z[k];
      z[k] = exp_nonpositive(z[k]);
      if (k != target) stats.rest += z[k];
    }
    stats.rest = group_sum(stats.rest, groups);
    stats.gap = group_sum(stats.gap, groups);
    return stats;
  }
};

}  // namespace metricseg::region
