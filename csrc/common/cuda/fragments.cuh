// Products of a warp from tiles in shared memory: C += A B of 16 rows, 8 columns and kStep values of the sum, on the
// tensor cores (16-bit types, tf32), or with an FMA for each product (fp32, fp64). All kinds share the layout of C in
// tensor_cores.cuh, so the code around them is the same. Derivation: docs/kernels/centers.md.
#pragma once

#include "reduce.cuh"
#include "scalar.cuh"
#include "tensor_cores.cuh"
#include "vec.cuh"

namespace metricseg {

// A kind has the types of operands and sums, fragments A and B, and
//   round(value)            an operand
//   load_a(a, tile, s)      A [16, kStep] from tile [16, kStep]
//   load_across(b, tile, s) two neighbors B [kStep, 8] from tile [kStep, 16]
//   load_along(b, tile, s)  the same from their transposed tile [16, kStep]
// with rows of a tile s values apart. Rows are 16-byte aligned.
template <typename Type>
struct Half {
  using Operand = Type;
  using Sum = float;
  static constexpr int kStep = 16;
  static constexpr bool kTensorCores = true;
  struct A {
    uint32_t words[4];
  };
  struct B {
    uint32_t words[2];
  };

  static __device__ __forceinline__ Operand round(float value) {
    Operand operand;
    narrow(value, operand);
    return operand;
  }
  static __device__ __forceinline__ void load_a(A& a, const Operand* tile, int stride) {
    const int lane = threadIdx.x % kWarp;
    load_matrices(a.words, tile + lane % 16 * stride + lane / 16 * 8);
  }
  static __device__ __forceinline__ void load_across(B* b, const Operand* tile, int stride) {
    const int lane = threadIdx.x % kWarp;
    uint32_t words[4];
    load_transposed(words, tile + lane % 16 * stride + lane / 16 * 8);
    b[0] = {{words[0], words[1]}};
    b[1] = {{words[2], words[3]}};
  }
  static __device__ __forceinline__ void load_along(B* b, const Operand* tile, int stride) {
    const int lane = threadIdx.x % kWarp;
    uint32_t words[4];
    load_matrices(words, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 8);
    b[0] = {{words[0], words[1]}};
    b[1] = {{words[2], words[3]}};
  }
  static __device__ __forceinline__ void multiply(float (&c)[4], const A& a, const B& b) {
    multiply_add(c, a.words, b.words[0], b.words[1], Operand{});
  }
};

// A is rounded in shared memory. If kRounds, B is not, as features are copied there, and is rounded when it is loaded.
template <bool kRounds>
struct Tf32 {
  using Operand = float;
  using Sum = float;
  static constexpr int kStep = 8;
  static constexpr bool kTensorCores = true;
  using A = Half<__nv_bfloat16>::A;
  using B = Half<__nv_bfloat16>::B;

  static __device__ __forceinline__ Operand round(float value) { return bits_as<float>(round_to_tf32(value)); }
  static __device__ __forceinline__ uint32_t word(float value) {
    return kRounds ? round_to_tf32(value) : bits_as<uint32_t>(value);
  }
  static __device__ __forceinline__ void load_a(A& a, const Operand* tile, int stride) {
    const int lane = threadIdx.x % kWarp;
    load_matrices(a.words, tile + lane % 16 * stride + lane / 16 * 4);
  }
  static __device__ __forceinline__ void load_across(B* b, const Operand* tile, int stride) {
    const int lane = threadIdx.x % kWarp;
    const float* const values = tile + lane % 4 * stride + lane / 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].words[i % 2] = word(values[i % 2 * 4 * stride + i / 2 * 8]);
  }
  static __device__ __forceinline__ void load_along(B* b, const Operand* tile, int stride) {
    const int lane = threadIdx.x % kWarp;
    uint32_t words[4];
    load_matrices(words, tile + (lane % 8 + lane / 16 * 8) * stride + lane / 8 % 2 * 4);
#pragma unroll
    for (int i = 0; i < 4; ++i) b[i / 2].words[i % 2] = word(bits_as<float>(words[i]));
  }
  static __device__ __forceinline__ void multiply(float (&c)[4], const A& a, const B& b) {
    multiply_add(c, a.words, b.words[0], b.words[1], Operand{});
  }
};

template <typename T>
struct Exact {
  using Operand = T;
  using Sum = T;
  static constexpr int kStep = Vec<T>::kCount;
  static constexpr bool kTensorCores = false;
  struct A {
    Vec<T> rows[2];
  };
  struct B {
    T values[kStep][2];
  };
  struct alignas(2 * sizeof(T)) Pair {
    T values[2];
  };

  static __device__ __forceinline__ Operand round(T value) { return value; }
  static __device__ __forceinline__ void load_a(A& a, const T* tile, int stride) {
    const int g = threadIdx.x % kWarp / 4;
    a.rows[0] = *reinterpret_cast<const Vec<T>*>(tile + g * stride);
    a.rows[1] = *reinterpret_cast<const Vec<T>*>(tile + (g + 8) * stride);
  }
  static __device__ __forceinline__ void load_across(B* b, const T* tile, int stride) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2 * kStep; ++i) {
      const Pair pair = *reinterpret_cast<const Pair*>(tile + i % kStep * stride + i / kStep * 8 + 2 * t);
      b[i / kStep].values[i % kStep][0] = pair.values[0];
      b[i / kStep].values[i % kStep][1] = pair.values[1];
    }
  }
  static __device__ __forceinline__ void load_along(B* b, const T* tile, int stride) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const Vec<T> row = *reinterpret_cast<const Vec<T>*>(tile + (i / 2 * 8 + 2 * t + i % 2) * stride);
#pragma unroll
      for (int k = 0; k < kStep; ++k) b[i / 2].values[k][i % 2] = row.values[k];
    }
  }
  static __device__ __forceinline__ void multiply(T (&c)[4], const A& a, const B& b) {
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) c[i] += a.rows[i / 2].values[k] * b.values[k][i % 2];
    }
  }
};

// sums += A B of MT times 16 rows, Step rows apart, of which the first `count` are wanted, and 8 NT columns; depth values
// of the sum. A tile [rows, depth]; B tile [depth, 8 NT], or [8 NT, depth] with Along.
template <typename Kind, bool Along, int Step, int MT, int NT>
__device__ __forceinline__ void multiply_tiles(typename Kind::Sum (&sums)[MT][NT][4], const typename Kind::Operand* a,
                                               int a_stride, const typename Kind::Operand* b, int b_stride, int count,
                                               int depth) {
#pragma unroll(Kind::kTensorCores ? 4 : 2)
  for (int k = 0; k < depth; k += Kind::kStep) {
    typename Kind::B columns[NT];
#pragma unroll
    for (int j = 0; j < NT; j += 2) {
      if constexpr (Along) {
        Kind::load_along(columns + j, b + j * 8 * b_stride + k, b_stride);
      } else {
        Kind::load_across(columns + j, b + k * b_stride + j * 8, b_stride);
      }
    }
#pragma unroll
    for (int i = 0; i < MT; ++i) {
      if (i >= count) break;
      typename Kind::A rows;
      Kind::load_a(rows, a + i * Step * a_stride + k, a_stride);
#pragma unroll
      for (int j = 0; j < NT; ++j) Kind::multiply(sums[i][j], rows, columns[j]);
    }
  }
}

}  // namespace metricseg
