// Products of 16 rows of X and kColumns rows of Y by a warp, S = X Y^T, and of weights and Y, G += W Y, of a kind of
// fragments. With g = lane / 4, t = lane % 4 a thread has rows g and g + 8 of both: of S columns 8 n + 2 t + {0, 1},
// s[n] = {row g, row g + 8}; of G columns 4 V d + V t + {0 .. V - 1}. The registers that hold W after the first product
// are the left operand of the second: of mma as they are (tf32: with the columns of W, and rows of Y, in the order
// 0 2 4 6 1 3 5 7), of FMA after a shuffle. Strides and widths are in bytes.
#pragma once

#include "../../common/cuda/fragments.cuh"
#include "rows.h"

namespace metricseg::row_pairs {

template <class Kind>
struct Products {
  using Operand = typename Kind::Operand;
  using T = typename Kind::Sum;
  static constexpr int kSize = sizeof(Operand);
  static constexpr int kColumns = Kind::kTensorCores ? 64 : 256 / kSize, kSlice = sizeof(T) == 8 ? 64 : 256;
  static constexpr int kV = Kind::kTensorCores ? 2 : Vec<T>::kCount;
  static constexpr bool kHalf = kSize == 2, kKeeps = Kind::kTensorCores;
  static constexpr int kStep = Kind::kStep * kSize;  // bytes
  using S = T[kColumns / 8][4];
  using Kept = typename Kind::A[kWhole / kStep];

  static __device__ __forceinline__ Operand round(T value) { return Kind::round(value); }

  // s += X Y^T; x: the warp's rows, y: those of the tile
  static __device__ __forceinline__ void multiply(S& s, const char* x, const char* y, int stride, int width) {
#pragma unroll(Kind::kTensorCores ? 2 : 1)
    for (int k = 0; k < width; k += kStep) {
      typename Kind::A a;
      Kind::load_a(a, operands(x + k), stride / kSize);
      multiply_step(s, a, y + k, stride);
    }
  }

  // The same with the rows of X in registers: a fifth less is read from shared memory, which is as busy as tensor cores.
  static __device__ __forceinline__ void keep(Kept& kept, const char* x, int stride, int width) {
#pragma unroll
    for (int k = 0; k < kWhole; k += kStep) {
      if (k < width) Kind::load_a(kept[k / kStep], operands(x + k), stride / kSize);
    }
  }
  static __device__ __forceinline__ void multiply_kept(S& s, const Kept& kept, const char* y, int stride, int width) {
#pragma unroll
    for (int k = 0; k < kWhole; k += kStep) {
      if (k >= width) break;
      multiply_step(s, kept[k / kStep], y + k, stride);
    }
  }

  // sums += W Y; shifts w
  static __device__ __forceinline__ void add_product(T (&sums)[kSlice / 2], S& w, const char* y, int stride,
                                                     int width) {
    const int lane = threadIdx.x % kWarp;
    auto& tiles = reinterpret_cast<T(&)[kSlice / 8][4]>(sums);
    if constexpr (kHalf) {
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j) {
        const auto &left = w[2 * j], &right = w[2 * j + 1];
        const typename Kind::A a{{pack(left[0], left[1], Operand()), pack(left[2], left[3], Operand()),
                                  pack(right[0], right[1], Operand()), pack(right[2], right[3], Operand())}};
#pragma unroll
        for (int d = 0; d < kSlice / 8; d += 2) {
          if (d * 16 >= width) break;
          typename Kind::B b[2];
          Kind::load_across(b, operands(y + j * 16 * stride + d * 16), stride / kSize);
          Kind::multiply(tiles[d], a, b[0]);
          Kind::multiply(tiles[d + 1], a, b[1]);
        }
      }
    } else if constexpr (Kind::kTensorCores) {
      const char* const p_y = y + lane % 4 * 2 * stride + lane / 4 * 4;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        const typename Kind::A a{
            {round_to_tf32(w[j][0]), round_to_tf32(w[j][2]), round_to_tf32(w[j][1]), round_to_tf32(w[j][3])}};
        const char* const row = p_y + j * 8 * stride;
#pragma unroll
        for (int d = 0; d < kSlice / 8; ++d) {
          if (d * 32 >= width) break;
          const typename Kind::B b{{*reinterpret_cast<const uint32_t*>(row + d * 32),
                                    *reinterpret_cast<const uint32_t*>(row + stride + d * 32)}};
          Kind::multiply(tiles[d], a, b);
        }
      }
    } else {
      using V = Vec<T>;
      const char* row = y + lane % 4 * 16;
#pragma unroll 1  // w is shifted instead
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 8; ++c, row += stride) {
          const int from = (lane & ~3) + c / 2;  // the lane that holds W of column 8 n + c
          const T first = __shfl_sync(kFullMask, w[0][c % 2], from);
          const T second = __shfl_sync(kFullMask, w[0][2 + c % 2], from);
#pragma unroll
          for (int d = 0; d < kSlice / (4 * kV); ++d) {
            if (d * 64 >= width) break;
            const V value = *reinterpret_cast<const V*>(row + d * 64);
#pragma unroll
            for (int v = 0; v < kV; ++v) {
              sums[2 * kV * d + v] += first * value.values[v];
              sums[2 * kV * d + kV + v] += second * value.values[v];
            }
          }
        }
#pragma unroll
        for (int i = 0; i + 1 < kColumns / 8; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) w[i][e] = w[i + 1][e];
        }
      }
    }
  }

 private:
  static __device__ __forceinline__ const Operand* operands(const char* p) {
    return reinterpret_cast<const Operand*>(p);
  }
  static __device__ __forceinline__ void multiply_step(S& s, const typename Kind::A& a, const char* y, int stride) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; n += 2) {
      typename Kind::B b[2];
      Kind::load_along(b, operands(y + n * 8 * stride), stride / kSize);
      Kind::multiply(s[n], a, b[0]);
      Kind::multiply(s[n + 1], a, b[1]);
    }
  }
};

}  // namespace metricseg::row_pairs
