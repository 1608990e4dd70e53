// Sums over pixels A X^T, and sums of parts in a fixed order. A block takes 32 or 160 classes, 128 channels and a part
// of the pixels of a group, which is an image or all of them; a warp 32 channels and half of the classes. It leaves a
// row of its own of [parts, K, C]. Derivation: docs/kernels/centers.md.
#pragma once

#include "project.cuh"

namespace metricseg::centers {

constexpr int kChannels = 128;  // of a block
constexpr int kJoined = 32, kJoinGroups = kProductThreads / kJoined;

template <typename Kind, int MT>
struct SumsTile {
  static constexpr int kSize = sizeof(typename Kind::Operand);
  static constexpr int kRows = kRowWarps * MT * 16, kDepth = 128 / kSize, kStride = kDepth + 16 / kSize;
  static constexpr int kChannelStride = kChannels + (kSize == 8 ? 2 : 8);
  static constexpr int kRowValues = kRows * kStride;
  static constexpr int kChannelValues = kDepth * kChannelStride > kChannels * kStride ? kDepth * kChannelStride
                                                                                      : kChannels * kStride;
  static constexpr int kStage = kRowValues + kChannelValues, kStages = 3;
  static constexpr int64_t kSmem = int64_t(kStages) * kStage * kSize;
  static constexpr int kBlocks = MT == 1 ? 2 : 1;  // of a multiprocessor
};

template <typename T>
struct SumsParams {
  View a, x;             // [B, K, h w] operands, [B, C, h, w]
  int64_t images;        // of a group
  int64_t classes, channels;
  int block_rows, blocks, chunks, parts, tiles;  // of classes, of channels, of a group, of an image
  T* out;                                        // [groups, parts, K, C]
};

template <typename Kind, int MT>
__global__ void __launch_bounds__(kProductThreads, (SumsTile<Kind, MT>::kBlocks))
    sums_kernel(SumsParams<typename Kind::Sum> p) {
  using Tile = SumsTile<Kind, MT>;
  using T = typename Kind::Sum;
  using Operand = typename Kind::Operand;
  auto* const smem = shared_memory<Operand>();
  int64_t index = blockIdx.x;
  const auto next = [&](int count) {
    const int found = static_cast<int>(index % count);
    index /= count;
    return found;
  };
  const int block = next(p.blocks), chunk = next(p.chunks), part = next(p.parts);
  const int64_t group = index, all = p.images * p.tiles;
  const int64_t begin = all * part / p.parts, end = all * (part + 1) / p.parts;
  const bool last = p.x.lasts && p.x.map.type == kTypeOf<Operand>;  // tiles of x are [pixels, channels]
  const auto stage_of = [&](int64_t tile) { return smem + (tile - begin) % Tile::kStages * Tile::kStage; };
  const auto load = [&](int64_t tile) {
    if (tile < end) {
      Operand* const stage = stage_of(tile);
      const int64_t image = group * p.images + tile / p.tiles, pixel = tile % p.tiles * Tile::kDepth;
      const Place rows{image, int64_t(block) * p.block_rows, p.classes, pixel, p.block_rows};
      copy_tile<Tile::kDepth, Tile::kStride>(p.a, rows, stage);
      const Place columns{image, int64_t(chunk) * kChannels, p.channels, pixel, kChannels};
      if (last) {
        copy_transposed<kChannels, Tile::kDepth, Tile::kChannelStride>(p.x, columns, stage + Tile::kRowValues);
      } else {
        load_tile<T, kChannels, Tile::kDepth, Tile::kStride>(p.x, columns, stage + Tile::kRowValues);
      }
    }
    commit_copies();
  };
  const int warp = threadIdx.x / kWarp, column = warp % kPixelWarps * kWarp, upper = warp / kPixelWarps;
  const int count = (p.block_rows / 16 + 1 - upper) / 2;  // of every other 16 rows
  T sums[MT][4][4] = {};
  for (int s = 0; s < Tile::kStages - 1; ++s) load(begin + s);
#pragma unroll 1
  for (int64_t tile = begin; tile < end; ++tile) {
    wait_copies<Tile::kStages - 2>();
    __syncthreads();
    load(tile + Tile::kStages - 1);
    const Operand* const a = stage_of(tile);
    const Operand* const own = a + upper * 16 * Tile::kStride;
    const Operand* const b = a + Tile::kRowValues;
    if (last) {
      multiply_tiles<Kind, false, Tile::kDepth, 32>(sums, own, Tile::kStride, b + column, Tile::kChannelStride, count);
    } else {
      multiply_tiles<Kind, true, Tile::kDepth, 32>(sums, own, Tile::kStride, b + column * Tile::kStride, Tile::kStride,
                                                   count);
    }
  }
  wait_copies<0>();
  T* const out = p.out + (group * p.parts + part) * p.classes * p.channels;
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
__global__ void __launch_bounds__(kProductThreads) join_parts_kernel(const T* from, int64_t parts, int64_t count, T* to) {
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
