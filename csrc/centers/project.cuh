// Rows times a map: W X, its backward T = W^T A, and D X, each with an epilogue on the result in registers. A block
// takes 128 pixels and 32 or 160 rows, a warp 32 pixels and half of the rows; chunks of both factors go through a
// pipeline of asynchronous copies. Blocks of rows of the same pixels are neighbors, so that L2 serves all but the first.
// Derivation: docs/kernels/centers.md.
#pragma once

#include <limits>

#include "../engines/pixel_rows/views.cuh"
#include "params.h"

namespace metricseg::centers {

constexpr int kPixels = 128, kPixelWarps = 4, kRowWarps = 2;  // of a block

// MT: 16 rows of a warp, at most.
template <typename Kind, int MT>
struct ProjectTile {
  using Operand = typename Kind::Operand;
  static constexpr int kSize = sizeof(Operand);
  static constexpr int kRows = kRowWarps * MT * 16, kDepth = 64 / kSize;
  // strides in shared memory: loads of fragments meet no bank twice
  static constexpr int kRowStride = kDepth + 16 / kSize, kPixelStride = kPixels + (kSize == 8 ? 2 : 8);
  static constexpr int kRowValues = kRows * kRowStride;
  static constexpr int kPixelValues =
      kPixels * kRowStride > kDepth* kPixelStride ? kPixels * kRowStride : kDepth * kPixelStride;
  static constexpr int kStage = kRowValues + kPixelValues;
  static constexpr int kStages = MT == 1 ? 4 : 3;
  static constexpr int64_t kSmem = int64_t(kStages) * kStage * kSize;
  static constexpr int kBlocks = (MT == 1 && kSize < 8) || Kind::kTensorCores ? 2 : 1;  // of a multiprocessor
};

enum class Epilogue { similarity, spread, soft_shares, soft, soft_of_shares };

template <typename T>
struct ProjectParams {
  Epilogue epilogue;
  View x;                                  // [B, J, h, w]
  const void* rows;                        // [1 or B, padded M, padded J] operands
  int64_t row_image, depth, padded_depth;  // stride of an image; J
  int64_t row_count;                       // M
  int block_rows, blocks, tiles;
  View out;  // [B, M, h, w]
  // similarity
  const T* bias;
  int64_t bias_image;
  Map labels;
  int64_t ignore_index;
  bool cosine;
  T square, eps;
  T* target_similarity;
  T* norms;
  View input;  // [B, M, h, w] or absent: features of spread, logits of soft
  // spread: out = product - along features + own rows_label
  const T* along;         // [B, number_stride] or absent, with the features
  const T* own;           // [B, number_stride] or absent
  const int* own_labels;  // [B, number_stride], with own
  int64_t number_stride;
  // soft
  const T* lse;        // [B, number_stride]
  const T* grad_mass;  // [B, M]
  T* shares;           // [blocks, B, h w] of sum_k M_k m_k
  int64_t all_pixels;  // B h w
};

// 1 / |x| as core/unit.py has it.
template <typename T>
__device__ __forceinline__ T inverse(T norm, T eps) {
  return norm == T(0) ? T(0) : T(1) / (norm < eps ? eps : norm);
}

// Where a block and a warp are.
struct ProjectPlace {
  int image, first_pixel;  // of the block
  int block, first_row;    // of rows
  int warp_row, tiles;     // the warp takes every other 16 rows; how many of them
  int column;              // of the warp, of the 128

  template <typename T>
  static __device__ __forceinline__ ProjectPlace of(const ProjectParams<T>& p, int index) {
    const int block = index % p.blocks, tile = index / p.blocks, warp = threadIdx.x / kWarp, upper = warp / kPixelWarps;
    return {tile / p.tiles,
            tile % p.tiles * kPixels,
            block,
            block * p.block_rows,
            upper,
            (p.block_rows / 16 + 1 - upper) / 2,
            warp % kPixelWarps * kWarp};
  }
};

template <typename T, int MT>
using Sums = T[MT][4][4];

// What the epilogues need of the block's pixels, in shared memory.
template <typename T>
struct Columns {
  T* shares;    // [groups, 128] of |x|^2; soft: [2, 128] of sum_j M_j m_j
  T* factors;   // [128] r; along; or lse
  T* shifts;    // [128] square |x|^2; own; or sum_j M_j m_j
  int* labels;  // [128], negative for none
  T* free;      // shared memory behind them
};

// staged [rows, 128] += own w_label, from the first row on
template <typename Kind, int Stride, typename T>
__device__ __forceinline__ void add_own(const ProjectParams<T>& p, const Place& place, const Columns<T>& c, T* staged) {
  const auto* const rows = static_cast<const typename Kind::Operand*>(p.rows) + place.image * p.row_image;
#pragma unroll 1
  for (int i = threadIdx.x; i < place.rows * kPixels; i += kProductThreads) {
    const int n = i % kPixels, label = c.labels[n];
    const int64_t row = place.first_row + i / kPixels;
    if (label < 0 || row >= p.row_count) continue;
    staged[i / kPixels * Stride + n] += c.shifts[n] * widen<T>(rows[row * p.padded_depth + label]);
  }
  __syncthreads();
}

// Products through shared memory, kRows at a time: filled with the input if there is one, then f(row, values, staged)
// looks at a lane's values of a row, pixels 8 j + 2 (lane % 4) + e of the warp, and at staged[8 j + e], which is written
// to the output if it `stores`. The loops are not unrolled: an epilogue is compiled once, not for each fragment.
template <typename Kind, int MT, typename T, typename F>
__device__ __forceinline__ void each_row(const ProjectParams<T>& p, const ProjectPlace& at, const Sums<T, MT>& sums,
                                         const Columns<T>& c, bool stores, F f) {
  T* const stage = c.free;
  constexpr int kRows = MT == 1 ? 32 : 64, kStride = kPixels + 8;
  const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll 1
  for (int first = 0; first < p.block_rows; first += kRows) {
    const int rows = p.block_rows - first < kRows ? p.block_rows - first : kRows;
    const Place place{at.image, at.first_row + first, p.row_count, at.first_pixel, rows};
    __syncthreads();  // what was staged before has been read
    if (p.input) {
      load_tile<T, kRows, kPixels, kStride>(p.input, place, stage);
      commit_copies();
      wait_copies<0>();
      __syncthreads();
    }
#pragma unroll 1
    for (int r = first / 16; r < (first + kRows) / 16 && r < 2 * at.tiles; ++r) {
      T values[4][2] = {};
#pragma unroll
      for (int q = 0; q < 2 * MT; ++q) {
        if (q != r) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) values[j / 2][j % 2] = sums[q / 2][j / 2][q % 2 * 2 + j % 2];
      }
      const int row = r / 2 * 32 + at.warp_row * 16 + r % 2 * 8 + g;
      f(at.first_row + row, values, stage + (row - first) * kStride + at.column + 2 * t);
    }
    if (!stores) continue;
    __syncthreads();
    if (p.own) add_own<Kind, kStride>(p, place, c, stage);
    store_tile<T, kRows, kPixels, kStride>(p.out, place, stage);
  }
}

template <typename T>
__device__ __forceinline__ Columns<T> make_columns(const ProjectParams<T>& p, const ProjectPlace& at, T* smem,
                                                   int groups) {
  T* const factors = smem + groups * kPixels;
  const Columns<T> c{smem, factors, factors + kPixels, reinterpret_cast<int*>(factors + 2 * kPixels),
                     factors + 4 * kPixels};
  const int thread = threadIdx.x;
  const int64_t pixels = p.out.pixels, n = at.first_pixel + thread, place = at.image * pixels + n;
  if (thread >= kPixels) return c;
  T factor = 1, shift = 0;
  int label = kIgnored;
  if (p.epilogue == Epilogue::similarity) {
    if (p.cosine || p.square != T(0)) {
      for (int i = 0; i < groups; ++i) shift += c.shares[i * kPixels + thread];
    }
    if (p.cosine) {
      const T norm = sqrt(shift);
      factor = inverse(norm, p.eps);
      if (at.block == 0 && n < pixels) p.norms[place] = norm;
    }
    shift = p.square == T(0) ? T(0) : p.square * shift;
    if (p.labels && n < pixels) {
      const int64_t found = label_at(p.labels, at.image, n / p.x.width, n % p.x.width);
      label = static_cast<int>(class_of(found, p.row_count, p.ignore_index));
      if (label < 0 && at.block == 0) p.target_similarity[place] = 0;
    }
  } else {
    const T* const numbers = p.epilogue == Epilogue::spread ? p.along : p.lse;
    factor = numbers && n < pixels ? numbers[at.image * p.number_stride + n] : T(0);
    if (p.own && n < pixels) {
      shift = p.own[at.image * p.number_stride + n];
      label = p.own_labels[at.image * p.number_stride + n];
    }
    if (p.epilogue == Epilogue::soft_of_shares && n < pixels) {
      for (int i = 0; i < p.blocks; ++i) shift += p.shares[i * p.all_pixels + place];
    }
  }
  c.factors[thread] = factor;
  c.shifts[thread] = shift;
  c.labels[thread] = label;
  return c;
}

// The block's sum_j M_j m_j [128], M = exp(logits - lse), m = D x + d.
template <typename T, int MT>
__device__ __forceinline__ void share_means(const ProjectParams<T>& p, const ProjectPlace& at, const Columns<T>& c,
                                            const T (&means)[4][2]) {
  const int column = at.column + 2 * (threadIdx.x % 4), thread = threadIdx.x;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    T sum = means[j / 2][j % 2];
    for (int step = 4; step < kWarp; step *= 2) sum += __shfl_xor_sync(kFullMask, sum, step);
    if (thread % kWarp < 4) c.shares[at.warp_row * kPixels + column + j / 2 * 8 + j % 2] = sum;
  }
  __syncthreads();
  if (thread >= kPixels) return;
  const int64_t n = at.first_pixel + thread;
  const T sum = c.shares[thread] + c.shares[kPixels + thread];
  c.shifts[thread] = sum;
  if (p.epilogue == Epilogue::soft_shares && n < p.out.pixels) {
    p.shares[at.block * p.all_pixels + at.image * p.out.pixels + n] = sum;
  }
}

// similarity: r <x, w> + bias - square |x|^2
// spread:     product - along x + own w_label
// soft:       M (m - sum_j M_j m_j), in two passes: first the sum, or this block's share of it, then the result
template <typename Kind, int MT, typename T>
__device__ __forceinline__ void finish(const ProjectParams<T>& p, const ProjectPlace& at, const Sums<T, MT>& sums,
                                       T* smem, int groups) {
  const Columns<T> c = make_columns(p, at, smem, groups);
  const int column = at.column + 2 * (static_cast<int>(threadIdx.x) % 4);
  const bool similar = p.epilogue == Epilogue::similarity, spreads = p.epilogue == Epilogue::spread;
  const int passes = p.epilogue == Epilogue::soft_shares ? 1 : 2;
#pragma unroll 1
  for (int pass = p.epilogue == Epilogue::soft || passes == 1 ? 0 : 1; pass < passes; ++pass) {
    T means[4][2] = {};
    each_row<Kind, MT>(p, at, sums, c, pass == 1, [&](int row, const T(&values)[4][2], T* staged) {
      const bool known = row < p.row_count;
      T added = 0;
      if (known && similar && p.bias) added = p.bias[at.image * p.bias_image + row];
      if (known && !similar && !spreads) added = p.grad_mass[at.image * p.row_count + row];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int n = column + j / 2 * 8 + j % 2;
        T& to = staged[j / 2 * 8 + j % 2];
        const T value = values[j / 2][j % 2], factor = c.factors[n];
        if (similar) {
          const T product = factor * value;
          if (c.labels[n] == row) p.target_similarity[at.image * p.out.pixels + at.first_pixel + n] = product;
          to = product + added - c.shifts[n];
        } else if (spreads) {
          to = value - (p.input ? to * factor : T(0));
        } else {
          const T member = known ? exp_nonpositive(to - factor) : T(0), m = value + added;
          if (pass == 0) {
            means[j / 2][j % 2] += member * m;
          } else {
            to = member * (m - c.shifts[n]);
          }
        }
      }
    });
    if (pass == 0) share_means<T, MT>(p, at, c, means);
  }
}

template <typename Kind, int MT>
__global__ void __launch_bounds__(kProductThreads, (ProjectTile<Kind, MT>::kBlocks))
    project_kernel(ProjectParams<typename Kind::Sum> p) {
  using Tile = ProjectTile<Kind, MT>;
  using T = typename Kind::Sum;
  using Operand = typename Kind::Operand;
  constexpr int kEach = 16 / Tile::kSize, kPieces = Tile::kDepth / kEach;
  auto* const smem = shared_memory<Operand>();
  const int index = static_cast<int>(blockIdx.x);
  const ProjectPlace at = ProjectPlace::of(p, index);
  const auto* const rows =
      static_cast<const Operand*>(p.rows) + at.image * p.row_image + int64_t(at.block) * p.block_rows * p.padded_depth;
  const int chunks = static_cast<int>(p.padded_depth / Tile::kDepth);
  const bool last = p.x.lasts && p.x.map.type == kTypeOf<Operand>;  // tiles of x are [pixels, depth]
  const auto stage_of = [&](int chunk) { return smem + chunk % Tile::kStages * Tile::kStage; };
  const auto load = [&](int chunk) {
    if (chunk < chunks) {
      Operand* const stage = stage_of(chunk);
#pragma unroll 1
      for (int i = threadIdx.x; i < p.block_rows * kPieces; i += kProductThreads) {
        const int row = i / kPieces, piece = i % kPieces * kEach;
        copy_async(stage + row * Tile::kRowStride + piece, rows + row * p.padded_depth + chunk * Tile::kDepth + piece);
      }
      const Place place{at.image, int64_t(chunk) * Tile::kDepth, p.depth, at.first_pixel, Tile::kDepth};
      if (last) {
        copy_transposed<Tile::kDepth, kPixels, Tile::kRowStride>(p.x, place, stage + Tile::kRowValues);
      } else {
        load_tile<T, Tile::kDepth, kPixels, Tile::kPixelStride>(p.x, place, stage + Tile::kRowValues);
      }
    }
    commit_copies();
  };
  // a thread adds squares of one pixel, or of two that share a word, in every kGroups-th row
  constexpr int kShared = Tile::kSize == 2 ? 2 : 1, kGroups = kProductThreads * kShared / kPixels;
  const bool squared = p.epilogue == Epilogue::similarity && (p.cosine || p.square != T(0));
  const int column = threadIdx.x * kShared % kPixels, group = threadIdx.x * kShared / kPixels;
  T squares[kShared] = {};
  T sums[MT][4][4] = {};
  for (int s = 0; s < Tile::kStages - 1; ++s) load(s);
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    wait_copies<Tile::kStages - 2>();
    __syncthreads();
    load(chunk + Tile::kStages - 1);
    const Operand* const a = stage_of(chunk);
    const Operand* const b = a + Tile::kRowValues;
    const Operand* const own = a + at.warp_row * 16 * Tile::kRowStride;
    if (last) {
      multiply_tiles<Kind, true, 32>(sums, own, Tile::kRowStride, b + at.column * Tile::kRowStride, Tile::kRowStride,
                                     at.tiles, Tile::kDepth);
    } else {
      multiply_tiles<Kind, false, 32>(sums, own, Tile::kRowStride, b + at.column, Tile::kPixelStride, at.tiles,
                                      Tile::kDepth);
    }
    if (!squared) continue;
#pragma unroll 4
    for (int row = 0; row < Tile::kDepth; row += kGroups) {
#pragma unroll
      for (int i = 0; i < kShared; ++i) {
        const int place =
            last ? (column + i) * Tile::kRowStride + row + group : (row + group) * Tile::kPixelStride + column + i;
        const T value = widen<T>(b[place]);
        squares[i] += value * value;
      }
    }
  }
  wait_copies<0>();
  __syncthreads();
  auto* const values = reinterpret_cast<T*>(smem);
  if (squared) {
#pragma unroll
    for (int i = 0; i < kShared; ++i) values[group * kPixels + column + i] = squares[i];
    __syncthreads();
  }
  // computed anew: it would take registers in the loop
  finish<Kind, MT>(p, ProjectPlace::of(p, opaque(index)), sums, values, kGroups);
}

}  // namespace metricseg::centers
