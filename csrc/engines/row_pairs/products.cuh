// Products of 16 rows of X and kColumns rows of Y by a warp, S = X Y^T, and of weights and Y, G += W Y. With g = lane /
// 4, t = lane % 4 a thread has rows g and g + 8 of both: of S columns 8 n + 2 t + {0, 1}, s[n] = {row g, row g + 8};
// of G columns 4 V d + V t + {0 .. V - 1}. W has the layout of S, so that it never leaves the registers: it is the left
// operand of mma as it is (tf32: with the columns of W, and rows of Y, in the order 0 2 4 6 1 3 5 7), or a shuffle away.
#pragma once

#include "../../common/cuda/reduce.cuh"
#include "../../common/cuda/scalar.cuh"
#include "../../common/cuda/tensor_cores.cuh"
#include "../../common/cuda/vec.cuh"

namespace metricseg::row_pairs {

__device__ __forceinline__ int lane_of_thread() { return threadIdx.x % kWarp; }

// Tensor cores. Their operands have 32 bytes along k: 16 values of 16 bits, or 8 of 32.
template <typename Type>
struct TensorCores {
  using Operand = Type;
  using T = float;
  static constexpr int kColumns = 64, kSlice = 256, kV = 2;
  static constexpr bool kHalf = sizeof(Type) == 2, kKeeps = true;

  static __device__ __forceinline__ void round(float v, Type& to) {
    if constexpr (kHalf) {
      narrow(v, to);
    } else {
      const uint32_t bits = round_to_tf32(v);
      to = *reinterpret_cast<const float*>(&bits);
    }
  }

  // x: the warp's rows, y: those of the tile; a stride and a width in bytes
  static __device__ __forceinline__ void multiply(float (&s)[kColumns / 8][4], const char* x, const char* y, int stride,
                                                  int width) {
    const int lane = lane_of_thread();
    const char* p_x = x + lane % 16 * stride + lane / 16 * 16;
    const char* p_y = y + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 16;
#pragma unroll 2
    for (int k = 0; k < width; k += 32) {
      uint32_t a[4];
      load_matrices(a, p_x + k);
#pragma unroll
      for (int n = 0; n < kColumns / 8; n += 2) {
        uint32_t b[4];
        load_matrices(b, p_y + n * 8 * stride + k);
        multiply_add(s[n], a, b[0], b[1], Type());
        multiply_add(s[n + 1], a, b[2], b[3], Type());
      }
    }
  }

  // The same with the rows of X in registers: a fifth less is read from shared memory, which is as busy as tensor cores.
  using Kept = uint32_t[kWhole / 32][4];

  static __device__ __forceinline__ void keep(Kept& kept, const char* x, int stride, int width) {
    const char* const p_x = x + lane_of_thread() % 16 * stride + lane_of_thread() / 16 * 16;
#pragma unroll
    for (int k = 0; k < kWhole; k += 32) {
      if (k < width) load_matrices(kept[k / 32], p_x + k);
    }
  }
  static __device__ __forceinline__ void multiply_kept(float (&s)[kColumns / 8][4], const Kept& kept, const char* y,
                                                       int stride, int width) {
    const int lane = lane_of_thread();
    const char* const p_y = y + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 16;
#pragma unroll
    for (int k = 0; k < kWhole; k += 32) {
      if (k >= width) break;
#pragma unroll
      for (int n = 0; n < kColumns / 8; n += 2) {
        uint32_t b[4];
        load_matrices(b, p_y + n * 8 * stride + k);
        multiply_add(s[n], kept[k / 32], b[0], b[1], Type());
        multiply_add(s[n + 1], kept[k / 32], b[2], b[3], Type());
      }
    }
  }

  static __device__ __forceinline__ void add_product(float (&sums)[kSlice / 2], const float (&w)[kColumns / 8][4],
                                                     const char* y, int stride, int width) {
    auto& tiles = reinterpret_cast<float (&)[kSlice / 8][4]>(sums);
    const int lane = lane_of_thread();
    if constexpr (kHalf) {
      const char* const p_y = y + lane % 16 * stride + lane / 16 * 16;
#pragma unroll
      for (int j = 0; j < kColumns / 16; ++j) {
        const uint32_t a[4] = {pack(w[2 * j][0], w[2 * j][1], Type()), pack(w[2 * j][2], w[2 * j][3], Type()),
                               pack(w[2 * j + 1][0], w[2 * j + 1][1], Type()),
                               pack(w[2 * j + 1][2], w[2 * j + 1][3], Type())};
#pragma unroll
        for (int d = 0; d < kSlice / 8; d += 2) {
          if (d * 16 >= width) break;
          uint32_t b[4];
          load_transposed(b, p_y + j * 16 * stride + d * 16);
          multiply_add(tiles[d], a, b[0], b[1], Type());
          multiply_add(tiles[d + 1], a, b[2], b[3], Type());
        }
      }
    } else {
      const char* const p_y = y + lane % 4 * 2 * stride + lane / 4 * 4;
#pragma unroll
      for (int j = 0; j < kColumns / 8; ++j) {
        const uint32_t a[4] = {round_to_tf32(w[j][0]), round_to_tf32(w[j][2]), round_to_tf32(w[j][1]),
                               round_to_tf32(w[j][3])};
        const char* const row = p_y + j * 8 * stride;
#pragma unroll
        for (int d = 0; d < kSlice / 8; ++d) {
          if (d * 32 >= width) break;
          const uint32_t b0 = *reinterpret_cast<const uint32_t*>(row + d * 32);
          const uint32_t b1 = *reinterpret_cast<const uint32_t*>(row + stride + d * 32);
          multiply_add(tiles[d], a, b0, b1, Type());
        }
      }
    }
  }
};

// One multiplication and addition after another, in fp32 or fp64.
template <typename Type>
struct Exact {
  using Operand = Type;
  using T = Type;
  using V = Vec<T>;
  static constexpr int kColumns = 256 / sizeof(T), kSlice = sizeof(T) == 8 ? 64 : 256, kV = V::kCount;
  static constexpr bool kHalf = false, kKeeps = false;
  using Kept = char;

  static __device__ __forceinline__ void round(T v, T& to) { to = v; }

  static __device__ __forceinline__ V load(const char* p) { return *reinterpret_cast<const V*>(p); }

  static __device__ __forceinline__ void multiply(T (&s)[kColumns / 8][4], const char* x, const char* y, int stride,
                                                  int width) {
    const int lane = lane_of_thread();
    const char* const p_x = x + lane / 4 * stride;
    const char* const p_y = y + lane % 4 * 2 * stride;
#pragma unroll 1
    for (int k = 0; k < width; k += 16) {
      const V rows[2] = {load(p_x + k), load(p_x + 8 * stride + k)};
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const V column = load(p_y + (8 * n + e) * stride + k);
#pragma unroll
          for (int v = 0; v < V::kCount; ++v) {
            s[n][e] += rows[0].values[v] * column.values[v];
            s[n][2 + e] += rows[1].values[v] * column.values[v];
          }
        }
      }
    }
  }

  // Shifts w, so that the loop need not be unrolled.
  static __device__ __forceinline__ void add_product(T (&sums)[kSlice / 2], T (&w)[kColumns / 8][4], const char* y,
                                                     int stride, int width) {
    const int lane = lane_of_thread();
    const char* row = y + lane % 4 * 16;
#pragma unroll 1
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 8; ++c, row += stride) {
        const int from = (lane & ~3) + c / 2;  // the lane that holds W of column 8 n + c
        const T first = __shfl_sync(kFullMask, w[0][c % 2], from),
                second = __shfl_sync(kFullMask, w[0][2 + c % 2], from);
#pragma unroll
        for (int d = 0; d < kSlice / (4 * V::kCount); ++d) {
          if (d * 64 >= width) break;
          const V value = load(row + d * 64);
#pragma unroll
          for (int v = 0; v < V::kCount; ++v) {
            sums[2 * V::kCount * d + v] += first * value.values[v];
            sums[2 * V::kCount * d + V::kCount + v] += second * value.values[v];
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
};

}  // namespace metricseg::row_pairs
