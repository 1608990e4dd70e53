// The functions of csrc/common/cuda/tensor_cores.cuh on the host, by the layouts of the PTX manual. A copy to shared
// memory arrives when its thread waits for its group; until then the destination is NaN.
#pragma once

#include <array>
#include <vector>

#include "shim.h"

namespace cuda_host {

// What the lanes of a warp offer to each other. Two buffers in turn: a lane is at most one exchange ahead of another.
struct Words {
  std::array<uint32_t, 6> of[2][kWarp * kMostWarps];
  uint8_t turn[kWarp * kMostWarps];
};
inline Words words;

struct Copy {
  void* to;
  const void* from;
  int bytes;
};
struct Copies {
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};
inline Copies copies[kWarp * kMostWarps];  // of each thread

// Offers these words to the warp; then f(lane) are those of a lane.
METRICSEG_UNWATCHED inline auto exchange(const std::array<uint32_t, 6>& mine) {
  const unsigned thread = threadIdx.x, buffer = words.turn[thread]++ % 2;
  words.of[buffer][thread] = mine;
  wait(Fiber::kAtShuffle);
  const std::array<uint32_t, 6>* const warp = words.of[buffer] + thread / kWarp * kWarp;
  return [warp](unsigned lane) METRICSEG_UNWATCHED -> const std::array<uint32_t, 6>& { return warp[lane]; };
}

METRICSEG_UNWATCHED inline std::array<uint32_t, 6> words_of(const void* pointer) {
  const auto at = reinterpret_cast<uint64_t>(pointer);
  return {static_cast<uint32_t>(at), static_cast<uint32_t>(at >> 32)};
}

METRICSEG_UNWATCHED inline void load_matrices(uint32_t (&to)[4], const void* row, bool transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) throw std::logic_error("ldmatrix: a row is not 16-byte aligned");
  const auto of = exchange(words_of(row));
  const unsigned lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  const auto row_of = [&](unsigned matrix, unsigned r) METRICSEG_UNWATCHED {
    const auto& w = of(matrix * 8 + r);
    return reinterpret_cast<const char*>(uint64_t(w[1]) << 32 | w[0]);
  };
  for (unsigned m = 0; m < 4; ++m) {
    for (unsigned half = 0; half < 2; ++half) {
      const char* const from = transposed ? row_of(m, 2 * t + half) + 2 * g : row_of(m, g) + 4 * t + 2 * half;
      METRICSEG_RACES(races.touch(from, 2, false, false);)
      std::memcpy(reinterpret_cast<char*>(&to[m]) + 2 * half, from, 2);
    }
  }
}

// kValues: of the operands' type in a word; read(word, i): value i of them.
template <int kValues, typename Read>
METRICSEG_UNWATCHED void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                      const Read& read) {
  const auto of = exchange({a[0], a[1], a[2], a[3], b0, b1});
  const unsigned lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned lower = i / 2, column = 2 * t + i % 2;
    double sum = c[i];
    for (unsigned k = 0; k < 8; ++k) {  // the word of lane k % 4, of either half
      const auto &left = of(4 * g + k % 4), &right = of(4 * column + k % 4);
      for (int v = 0; v < kValues; ++v) {
        sum += double(read(left[lower + k / 4 * 2], v)) * double(read(right[4 + k / 4], v));
      }
    }
    c[i] = static_cast<float>(sum);
  }
}

// While one exists, what the standard library touches is not reported.
struct Unwatched {
  METRICSEG_UNWATCHED Unwatched() { METRICSEG_RACES(races.active = false;) }
  METRICSEG_UNWATCHED ~Unwatched() { METRICSEG_RACES(races.active = true;) }
};

METRICSEG_UNWATCHED inline void arrive(Copies& own, size_t left) {
  while (own.groups.size() > left) {
    for (const Copy& copy : own.groups.front()) {
      METRICSEG_RACES(races.touch(copy.from, copy.bytes, false, false); races.touch(copy.to, 16, true, false);)
      std::memset(copy.to, 0, 16);
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
    const Unwatched unwatched;
    own.groups.erase(own.groups.begin());
  }
}

}  // namespace cuda_host

namespace metricseg {

inline void load_matrices(uint32_t (&to)[4], const void* row) { cuda_host::load_matrices(to, row, false); }
inline void load_transposed(uint32_t (&to)[4], const void* row) { cuda_host::load_matrices(to, row, true); }

inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16) {
  cuda_host::multiply_add<2>(
      c, a, b0, b1, [](uint32_t word, int i) { return __bfloat162float({static_cast<uint16_t>(word >> 16 * i)}); });
}
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half) {
  cuda_host::multiply_add<2>(
      c, a, b0, b1, [](uint32_t word, int i) { return __half2float({static_cast<uint16_t>(word >> 16 * i)}); });
}
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float) {
  cuda_host::multiply_add<1>(c, a, b0, b1, [](uint32_t word, int) { return bit_copy<float>(word & ~0x1fffu); });
}

METRICSEG_UNWATCHED inline void copy_async(void* to, const void* from, int bytes = 16) {
  const auto misaligned = (reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) % 16;
  if (misaligned != 0 || bytes < 0 || bytes > 16) throw std::logic_error("cp.async: not 16 aligned bytes");
  METRICSEG_RACES(cuda_host::races.touch(to, 16, true, false);)
  std::memset(to, 0xff, 16);
  const cuda_host::Unwatched unwatched;
  cuda_host::copies[threadIdx.x].open.push_back({to, from, bytes});
}
METRICSEG_UNWATCHED inline void commit_copies() {
  const cuda_host::Unwatched unwatched;
  auto& own = cuda_host::copies[threadIdx.x];
  own.groups.push_back(std::move(own.open));
  own.open.clear();
}
template <int Left>
METRICSEG_UNWATCHED void wait_copies() {
  cuda_host::arrive(cuda_host::copies[threadIdx.x], Left);
}

inline uint32_t pack(float low, float high, __nv_bfloat16) {
  return uint32_t(__float2bfloat16_rn(high).bits) << 16 | __float2bfloat16_rn(low).bits;
}
inline uint32_t pack(float low, float high, __half) {
  return uint32_t(__float2half_rn(high).bits) << 16 | __float2half_rn(low).bits;
}
inline uint32_t round_to_tf32(float value) {
  const uint32_t bits = bit_copy<uint32_t>(value);
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & ~0x1fffu;  // halves away from zero
}

}  // namespace metricseg
