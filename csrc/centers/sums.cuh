// Sums over pixels S = A X^T, with T = W^T A of the same pixels from the same tiles, and sums of parts in a fixed order. A
// block takes 32 or 160 classes, 128 channels and a part of the pixels of a group, which is an image or all of them. In
// S a warp has 32 channels and half of the classes, in T 32 pixels and a share of the channels. W^T stays in shared
// memory, and T replaces X there before it is written. S goes to a row of the block's own of [parts, K, C]. Derivation:
// docs/kernels/centers.md.
#pragma once

#include "means.cuh"
#include "project.cuh"

namespace metricseg::centers {

constexpr int kChannels = 128;  // of a block

template <typename Kind, int MT, bool Spreads>
struct SumsTile {
  static constexpr int kSize = sizeof(typename Kind::Operand);
  static constexpr int kRows = kRowWarps * MT * 16, kDepth = 128 / kSize, kStride = kDepth + 16 / kSize;
  static constexpr int kChannelStride = kChannels + (kSize == 8 ? 2 : 8);
  static constexpr int kRowValues = kRows * kStride;
  static constexpr int kChannelValues =
      kDepth * kChannelStride > kChannels* kStride ? kDepth * kChannelStride : kChannels * kStride;
  static constexpr int kNumbers = 3 * kDepth * 4 / kSize;  // of the pixels: along, own, labels; 4 bytes each
  static constexpr int kStage = kRowValues + kChannelValues + (Spreads ? kNumbers : 0);
  static constexpr int kStages = Spreads ? 2 : 3;  // at most
  static constexpr int kWeightStride = kRows + 16 / kSize;
  static constexpr int64_t smem(int stages) {
    return (int64_t(stages) * kStage + (Spreads ? kChannels * kWeightStride : 0)) * kSize;
  }
  static constexpr int kBlocks = MT == 1 ? 2 : 1;  // of a multiprocessor
  // T: 32 pixels of a warp, MTs times 16 channels
  static constexpr int kPixelWarps = kDepth / 32 > 0 ? kDepth / 32 : 1;
  static constexpr int kChannelTiles = kChannels / 16 * kPixelWarps * kWarp / kProductThreads;
};

template <typename T>
struct SumsParams {
  View a, x;       // [B, K, h w] operands, [B, C, h, w]
  int64_t images;  // of a group
  int64_t classes, channels;
  int block_rows, blocks, chunks, parts, tiles;  // of classes, of channels, of a group, of an image
  int stages;                                    // of the pipeline, 2 or 3
  T* out;                                        // [groups, parts, K, C]
  // T
  const void* weights;   // [1 or groups, 128 chunks, block_rows] operands
  int64_t weight_group;  // stride of a group
  View grad;             // [B, C, h, w]
  const T *along, *own;  // [B, number_stride] or null
  const int* own_labels;
  int64_t number_stride;
};

// The tile of x = T - along x + own W, from T in registers; of pixels beyond the image, which have no numbers, anything.
template <typename Tile, typename T, typename Operand>
__device__ __forceinline__ void replace_tile(const SumsParams<T>& p, const T (&moved)[Tile::kChannelTiles][4][4],
                                             const Operand* weights, const Operand* numbers, int channel_step,
                                             int pixel_step, int64_t first_pixel, Operand* x) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const auto* const along = reinterpret_cast<const T*>(numbers);
  const auto* const own = along + Tile::kDepth;
  const auto* const labels = reinterpret_cast<const int*>(own + Tile::kDepth);
#pragma unroll
  for (int q = 0; q < 8; ++q) {
    const int n = warp % Tile::kPixelWarps * 32 + q / 2 * 8 + lane % 4 * 2 + q % 2;
    const int label = p.own && first_pixel + n < p.x.pixels ? labels[n] : kIgnored;
#pragma unroll
    for (int i = 0; i < 2 * Tile::kChannelTiles; ++i) {
      const int channel = warp / Tile::kPixelWarps * 16 * Tile::kChannelTiles + i * 8 + lane / 4;
      Operand& to = x[channel * channel_step + n * pixel_step];
      T value = moved[i / 2][q / 2][i % 2 * 2 + q % 2];
      if (p.along) value -= along[n] * widen<T>(to);
      if (label >= 0) value += own[n] * widen<T>(weights[channel * Tile::kWeightStride + label]);
      narrow(value, to);
    }
  }
}

template <typename Kind, int MT, bool Spreads>
__global__ void __launch_bounds__(kProductThreads, (SumsTile<Kind, MT, Spreads>::kBlocks))
    sums_kernel(SumsParams<typename Kind::Sum> p) {
  using Tile = SumsTile<Kind, MT, Spreads>;
  using T = typename Kind::Sum;
  using Operand = typename Kind::Operand;
  auto* const smem = shared_memory<Operand>();
  int index = static_cast<int>(blockIdx.x);
  const auto next = [&](int count) {
    const int found = index % count;
    index /= count;
    return found;
  };
  const int block = next(p.blocks), chunk = next(p.chunks), part = next(p.parts), group = index;
  const int64_t all = p.images * p.tiles;
  const int64_t begin = all * part / p.parts, end = all * (part + 1) / p.parts;
  const bool last = p.x.lasts && p.x.map.type == kTypeOf<Operand>;  // tiles of x are [pixels, channels]
  const auto stage_of = [&](int64_t tile) { return smem + static_cast<int>(tile - begin) % p.stages * Tile::kStage; };
  const auto place_of = [&](int64_t tile) {
    return Place{group * p.images + tile / p.tiles, int64_t(chunk) * kChannels, p.channels,
                 tile % p.tiles * Tile::kDepth, kChannels};
  };
  Operand* const weights = smem + Tile::kStages * Tile::kStage;  // Spreads only: all stages are there
  const auto load = [&](int64_t tile) {
    if (tile < end) {
      Operand* const stage = stage_of(tile);
      Operand* const x = stage + Tile::kRowValues;
      const Place columns = place_of(tile);
      const Place rows{columns.image, int64_t(block) * p.block_rows, p.classes, columns.first_pixel, p.block_rows};
      copy_tile<Tile::kDepth, Tile::kStride>(p.a, rows, stage);
      if (last) {
        copy_transposed<kChannels, Tile::kDepth, Tile::kChannelStride>(p.x, columns, x);
      } else {
        load_tile<T, kChannels, Tile::kDepth, Tile::kStride>(p.x, columns, x);
      }
      if constexpr (Spreads) {
        constexpr int kPieces = Tile::kDepth / 4;
        const int kind = threadIdx.x / kPieces, piece = threadIdx.x % kPieces * 4;
        const void* const numbers = kind == 0   ? static_cast<const void*>(p.along)
                                    : kind == 1 ? static_cast<const void*>(p.own)
                                                : p.own_labels;
        const int64_t n = columns.first_pixel + piece;
        if (kind < 3 && numbers && n < p.number_stride) {
          copy_async(x + Tile::kChannelValues + threadIdx.x * 16 / Tile::kSize,
                     static_cast<const int*>(numbers) + columns.image * p.number_stride + n);
        }
      }
    }
    commit_copies();
  };
  if constexpr (Spreads) {
    const int pieces = p.block_rows * Tile::kSize / 16;
    const auto* const from =
        static_cast<const Operand*>(p.weights) + group * p.weight_group + int64_t(chunk) * kChannels * p.block_rows;
    for (int i = threadIdx.x; i < kChannels * pieces; i += kProductThreads) {
      const int channel = i / pieces, piece = i % pieces * (16 / Tile::kSize);
      copy_async(weights + channel * Tile::kWeightStride + piece, from + channel * p.block_rows + piece);
    }
  }
  const int warp = threadIdx.x / kWarp, column = warp % kPixelWarps * kWarp, upper = warp / kPixelWarps;
  const int count = (p.block_rows / 16 + 1 - upper) / 2;  // of every other 16 rows
  T sums[MT][4][4] = {};
  // the first turns only load: one place, since the code for all layouts is long
#pragma unroll 1
  for (int64_t tile = begin + 1 - p.stages; tile < end; ++tile) {
    if (tile >= begin) {
      if (p.stages == 2) {
        wait_copies<0>();
      } else {
        wait_copies<1>();
      }
      __syncthreads();
    }
    load(tile + p.stages - 1);
    if (tile < begin) continue;
    Operand* const a = stage_of(tile);
    Operand* const x = a + Tile::kRowValues;
    const Operand* const own = a + upper * 16 * Tile::kStride;
    if (last) {
      multiply_tiles<Kind, false, 32>(sums, own, Tile::kStride, x + column, Tile::kChannelStride, count, Tile::kDepth);
    } else {
      multiply_tiles<Kind, true, 32>(sums, own, Tile::kStride, x + column * Tile::kStride, Tile::kStride, count,
                                     Tile::kDepth);
    }
    if constexpr (Spreads) {
      T moved[Tile::kChannelTiles][4][4] = {};
      const int channel = warp / Tile::kPixelWarps * 16 * Tile::kChannelTiles;
      multiply_tiles<Kind, false, 16>(moved, weights + channel * Tile::kWeightStride, Tile::kWeightStride,
                                      a + warp % Tile::kPixelWarps * 32, Tile::kStride, Tile::kChannelTiles,
                                      p.block_rows);
      __syncthreads();  // all have read x
      replace_tile<Tile>(p, moved, weights, x + Tile::kChannelValues, last ? 1 : Tile::kStride,
                         last ? Tile::kChannelStride : 1, place_of(tile).first_pixel, x);
      __syncthreads();
      if (last) {
        store_transposed<kChannels, Tile::kDepth, Tile::kChannelStride>(p.grad, place_of(tile), x);
      } else {
        store_tile<T, kChannels, Tile::kDepth, Tile::kStride>(p.grad, place_of(tile), x);
      }
    }
  }
  wait_copies<0>();
  T* const out = p.out + (int64_t(group) * p.parts + part) * p.classes * p.channels;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int i = 0; i < MT; ++i) {
    if (i >= count) break;
#pragma unroll
    for (int q = 0; q < 16; ++q) {
      const int64_t row = int64_t(block) * p.block_rows + i * 32 + upper * 16 + q / 2 % 2 * 8 + lane / 4;
      const int64_t channel = int64_t(chunk) * kChannels + column + q / 4 * 8 + lane % 4 * 2 + q % 2;
      if (row < p.classes && channel < p.channels) out[row * p.channels + channel] = sums[i][q / 4][q % 4];
    }
  }
}

// to [groups, count] = sum over parts of from [groups, parts, count], eight threads a value
template <typename T>
__global__ void __launch_bounds__(kProductThreads)
    join_parts_kernel(const T* from, int64_t parts, int64_t count, T* to) {
  __shared__ T shares[kJoinGroups][kJoined];
  const int64_t blocks = (count + kJoined - 1) / kJoined, group = blockIdx.x / blocks;
  const int lane = threadIdx.x % kJoined, share = threadIdx.x / kJoined;
  const int64_t i = blockIdx.x % blocks * kJoined + lane;
  T sum = 0;
  if (i < count) {
#pragma unroll 4
    for (int64_t part = share; part < parts; part += kJoinGroups) sum += from[(group * parts + part) * count + i];
  }
  shares[share][lane] = sum;
  __syncthreads();
  if (share != 0 || i >= count) return;
  for (int other = 1; other < kJoinGroups; ++other) sum += shares[other][lane];
  to[group * count + i] = sum;
}

}  // namespace metricseg::centers
