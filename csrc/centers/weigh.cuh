// Operand A [K, N] of the products, which is r G or the softmax of logits, rounded once and with rows of whole 16-byte
// vectors; beside it one number for each pixel. A block of `weigh` takes 128 pixels and walks over all classes, its warps
// taking every eighth. Further blocks make the operands of the rows, which saves launches. Derivation:
// docs/kernels/centers.md.
#pragma once

#include "project.cuh"
#include "rows.cuh"

namespace metricseg::centers {

constexpr int kWeighWarps = kProductThreads / kWarp, kLanePixels = kPixels / kWarp;

template <typename T>
struct WeighParams {
  View from;  // [B, K, h, w]: gradient of logits, or logits
  int64_t batch, classes;
  int tiles;       // of an image
  void* a;         // [B, K, stride] operands, or null
  int64_t stride;  // of pixels: a multiple of 16 bytes
  // gradient of logits
  Map logits;      // [B, K, h, w] contiguous, or absent
  const T* norms;  // [B, h w] or null
  Map labels;      // with grad_pull, or absent
  int64_t ignore_index;
  const T *grad_pull, *pull_stats;  // [], [B, 1 + K]
  const T* target_similarity;
  T square, eps;
  T* along;         // [B, stride]: the part of dx = t - along x along x; or null
  T* own;           // [B, stride]: r O; or null
  int* own_labels;  // [B, stride]: of own, negative for none
  // softmax
  T* lse;                 // [B, stride]
  T* mass;                // [B, tiles, K], or null
  RowsParams<T> rows[2];  // made on the way, those with a count

  int64_t blocks() const { return batch * tiles + rows[0].blocks() + rows[1].blocks(); }
};

// Whether this block makes rows, and no A.
template <typename Kind>
__device__ __forceinline__ bool makes_rows(const WeighParams<typename Kind::Sum>& p) {
  int64_t block = blockIdx.x - p.batch * p.tiles;
  if (block < 0) return false;
  const int64_t first = (p.rows[0].count + kProductThreads - 1) / kProductThreads;
  if (block < first) {
    fill_rows<Kind>(p.rows[0], block);
  } else {
    fill_rows<Kind>(p.rows[1], block - first);
  }
  return true;
}

// The label of a pixel that pulls, or a negative number.
template <typename T>
__device__ __forceinline__ int64_t own_label(const WeighParams<T>& p, int64_t image, int64_t n) {
  const int64_t label = label_at(p.labels, image, n / p.from.width, n % p.from.width);
  return class_of(label, p.classes, p.ignore_index);
}

// O at a pixel of this class
template <typename T>
__device__ __forceinline__ T own_gradient(const WeighParams<T>& p, int64_t image, int64_t label) {
  const T* const stats = p.pull_stats + image * (p.classes + 1);
  return -(*p.grad_pull / stats[0]) / stats[1 + label];
}

// A = r G; along = r^2 (sum_k G_k z_k + O target_similarity), or 2 square sum_k G_k
template <typename Kind>
__global__ void __launch_bounds__(kProductThreads) weigh_gradient_kernel(WeighParams<typename Kind::Sum> p) {
  using T = typename Kind::Sum;
  __shared__ T shares[kWeighWarps][kPixels];
  if (makes_rows<Kind>(p)) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t image = blockIdx.x / p.tiles, first = blockIdx.x % p.tiles * int64_t(kPixels), pixels = p.from.pixels;
  with_storage<T>(p.from.map, [&](auto* data) {
    const auto* const logits = reinterpret_cast<decltype(data)>(p.logits.data);
    T factors[kLanePixels], along[kLanePixels] = {};
    int64_t offsets[kLanePixels];
#pragma unroll
    for (int v = 0; v < kLanePixels; ++v) {
      const int64_t n = first + v * kWarp + lane;
      const bool known = n < pixels;
      factors[v] = known && p.norms ? inverse(p.norms[image * pixels + n], p.eps) : T(1);
      offsets[v] = known ? image * p.from.map.b + p.from.offset(n) : -1;
    }
#pragma unroll 2
    for (int64_t k = warp; k < p.classes; k += kWeighWarps) {
      auto* const a = static_cast<typename Kind::Operand*>(p.a) + (image * p.classes + k) * p.stride + first + lane;
      T values[kLanePixels], others[kLanePixels];
#pragma unroll
      for (int v = 0; v < kLanePixels; ++v) {
        const bool known = offsets[v] >= 0;
        values[v] = known ? widen<T>(data[offsets[v] + k * p.from.map.k]) : T(0);
        others[v] = T(1);
        if (known && logits) others[v] = widen<T>(logits[(image * p.classes + k) * pixels + first + v * kWarp + lane]);
      }
#pragma unroll
      for (int v = 0; v < kLanePixels; ++v) {
        along[v] += values[v] * others[v];
        if (p.a && offsets[v] >= 0) a[v * kWarp] = Kind::round(values[v] * factors[v]);
      }
    }
#pragma unroll
    for (int v = 0; v < kLanePixels; ++v) shares[warp][v * kWarp + lane] = along[v];
  });
  __syncthreads();
  const int64_t n = first + threadIdx.x, place = image * pixels + n, to = image * p.stride + n;
  if (threadIdx.x >= kPixels || n >= pixels) return;
  const T norm = p.norms ? p.norms[place] : T(1), r = p.norms ? inverse(norm, p.eps) : T(1);
  const int64_t label = p.labels ? own_label(p, image, n) : kIgnored;
  const T gradient = label >= 0 ? own_gradient(p, image, label) : T(0);
  if (p.own) {
    p.own[to] = r * gradient;
    p.own_labels[to] = static_cast<int>(label);
  }
  if (!p.along) return;
  T sum = 0;
  for (int i = 0; i < kWeighWarps; ++i) sum += shares[i][threadIdx.x];
  if (!p.norms) {
    p.along[to] = 2 * p.square * sum;
    return;
  }
  if (label >= 0) sum += gradient * p.target_similarity[place];
  p.along[to] = norm < p.eps ? T(0) : r * (r * sum);  // a norm below the least is a constant
}

// lse = log sum_k exp(logits_k), A = exp(logits - lse), mass = sum over the block's pixels
template <typename Kind>
__global__ void __launch_bounds__(kProductThreads) weigh_soft_kernel(WeighParams<typename Kind::Sum> p) {
  using T = typename Kind::Sum;
  __shared__ T shares[2][kWeighWarps][kPixels];
  if (makes_rows<Kind>(p)) return;
  auto* const tops = shares[0];
  auto* const totals = shares[1];
  const T least = -std::numeric_limits<T>::infinity();
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t image = blockIdx.x / p.tiles, first = blockIdx.x % p.tiles * int64_t(kPixels), pixels = p.from.pixels;
  with_storage<T>(p.from.map, [&](auto* data) {
    T lse[kLanePixels], totals_here[kLanePixels] = {};  // lse: first the maximum
    int64_t offsets[kLanePixels];
#pragma unroll
    for (int v = 0; v < kLanePixels; ++v) {
      const int64_t n = first + v * kWarp + lane;
      offsets[v] = n < pixels ? image * p.from.map.b + p.from.offset(n) : -1;
      lse[v] = least;
    }
    const auto add = [&](T& top, T& total, T other, T count) {  // count exp(other) joins total exp(top)
      const T before = top;
      top = other > top ? other : top;
      const T shift = top == least ? T(0) : top;
      total = total * exp_nonpositive(before - shift) + count * exp_nonpositive(other - shift);
    };
    const auto load = [&](int64_t k, T(&values)[kLanePixels]) {
#pragma unroll
      for (int v = 0; v < kLanePixels; ++v) {
        values[v] = offsets[v] >= 0 ? widen<T>(data[offsets[v] + k * p.from.map.k]) : T(0);
      }
    };
#pragma unroll 2
    for (int64_t k = warp; k < p.classes; k += kWeighWarps) {
      T values[kLanePixels];
      load(k, values);
#pragma unroll
      for (int v = 0; v < kLanePixels; ++v) add(lse[v], totals_here[v], values[v], T(1));
    }
#pragma unroll
    for (int v = 0; v < kLanePixels; ++v) {
      tops[warp][v * kWarp + lane] = lse[v];
      totals[warp][v * kWarp + lane] = totals_here[v];
    }
    __syncthreads();
#pragma unroll
    for (int v = 0; v < kLanePixels; ++v) {
      const int at = v * kWarp + lane;
      T top = tops[0][at], total = totals[0][at];
      for (int i = 1; i < kWeighWarps; ++i) add(top, total, tops[i][at], totals[i][at]);
      lse[v] = std::log(total) + top;  // if all logits are -inf the softmax is NaN, as in PyTorch
      if (warp == 0 && offsets[v] >= 0) p.lse[image * p.stride + first + at] = lse[v];
    }
#pragma unroll 2
    for (int64_t k = warp; k < p.classes && p.a; k += kWeighWarps) {
      auto* const a = static_cast<typename Kind::Operand*>(p.a) + (image * p.classes + k) * p.stride + first + lane;
      T values[kLanePixels], sum = 0;
      load(k, values);
#pragma unroll
      for (int v = 0; v < kLanePixels; ++v) {
        const T member = exp_nonpositive(values[v] - lse[v]);
        if (offsets[v] < 0) continue;
        sum += member;
        a[v * kWarp] = Kind::round(member);
      }
      if (!p.mass) continue;
      sum = group_sum(sum, kWarp);
      if (lane == 0) p.mass[blockIdx.x * p.classes + k] = sum;
    }
  });
}

}  // namespace metricseg::centers
