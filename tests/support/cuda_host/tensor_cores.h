// The functions of csrc/common/cuda/tensor_cores.cuh on the host, by the layouts of the PTX manual. A copy to shared
// memory arrives when its thread waits for its group; until then the destination is NaN, and a touch of it is reported.
#pragma once

#include "shim.h"

namespace cuda_host {

constexpr unsigned kAll = 0xffffffffu;

METRICSEG_UNWATCHED inline void load_matrices(uint32_t (&to)[4], const void* row, bool transposed,
                                              [[maybe_unused]] const void* code) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) throw std::logic_error("ldmatrix: a row is not 16-byte aligned");
  if (!is_shared(row)) throw std::logic_error("ldmatrix: a row is not in shared memory");
  const auto of = exchange(kAll, "ldmatrix", static_cast<const char*>(row));
  const unsigned lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  for (unsigned m = 0; m < 4; ++m) {
    for (unsigned half = 0; half < 2; ++half) {
      const char* const from = transposed ? of(m * 8 + 2 * t + half) + 2 * g : of(m * 8 + g) + 4 * t + 2 * half;
      METRICSEG_RACES(races.touch(from, 2, false, false, code);)
      std::memcpy(reinterpret_cast<char*>(&to[m]) + 2 * half, from, 2);
    }
  }
}

// The values of a lane's words, as read(word, i) gives value i of a word.
template <int kValues>
struct Operands {
  float a[4][kValues], b[2][kValues];
};

template <int kValues, typename Read>
METRICSEG_UNWATCHED void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                      const Read& read) {
  Operands<kValues> mine, left[4], right[2][4];
  for (int v = 0; v < kValues; ++v) {
    for (int i = 0; i < 4; ++i) mine.a[i][v] = read(a[i], v);
    mine.b[0][v] = read(b0, v);
    mine.b[1][v] = read(b1, v);
  }
  const auto of = exchange(kAll, "mma", mine);
  const unsigned lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
  for (unsigned i = 0; i < 4; ++i) {
    left[i] = of(4 * g + i);
    for (unsigned column = 0; column < 2; ++column) right[column][i] = of(4 * (2 * t + column) + i);
  }
  for (unsigned i = 0; i < 4; ++i) {
    double sum = c[i];
    for (unsigned k = 0; k < 8; ++k) {  // the word of lane k % 4, of either half
      for (int v = 0; v < kValues; ++v) {
        sum += double(left[k % 4].a[i / 2 + k / 4 * 2][v]) * double(right[i % 2][k % 4].b[k / 4][v]);
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

METRICSEG_UNWATCHED inline void send(const Copy& copy, [[maybe_unused]] const void* code) {
  const auto misaligned = (reinterpret_cast<uintptr_t>(copy.to) | reinterpret_cast<uintptr_t>(copy.from)) % 16;
  if (misaligned != 0) throw std::logic_error("cp.async: an address is not 16-byte aligned");
  if (copy.bytes < 0 || copy.bytes > 16) throw std::logic_error("cp.async: not 0 to 16 bytes");
  if (!is_shared(copy.to) || is_shared(copy.from)) throw std::logic_error("cp.async: not from global to shared memory");
  METRICSEG_RACES(races.touch(copy.to, 16, true, false, code); races.set_pending(copy.to, 16, true);
                  races.touch(copy.from, copy.bytes, false, false, code);)
  std::memset(copy.to, 0xff, 16);
  const Unwatched unwatched;
  block.running->copies.push_back(copy);
  std::memcpy(block.running->copies.back().sent, copy.from, copy.bytes);
}

METRICSEG_UNWATCHED inline void arrive(unsigned left, [[maybe_unused]] const void* code) {
  auto& copies = block.running->copies;
  size_t arrived = 0;
  for (; arrived < copies.size() && copies[arrived].group + left < block.running->groups; ++arrived) {
    const Copy& copy = copies[arrived];
    METRICSEG_RACES(races.set_pending(copy.to, 16, false); races.touch(copy.to, 16, true, false, code);
                    races.touch(copy.from, copy.bytes, false, false, code);)
    if (std::memcmp(copy.sent, copy.from, copy.bytes) != 0) throw std::logic_error("cp.async: its source has changed");
    std::memset(copy.to, 0, 16);
    std::memcpy(copy.to, copy.from, copy.bytes);
  }
  const Unwatched unwatched;
  copies.erase(copies.begin(), copies.begin() + arrived);
}

}  // namespace cuda_host

namespace metricseg {

METRICSEG_CALLED inline void load_matrices(uint32_t (&to)[4], const void* row) {
  cuda_host::load_matrices(to, row, false, METRICSEG_CODE);
}
METRICSEG_CALLED inline void load_transposed(uint32_t (&to)[4], const void* row) {
  cuda_host::load_matrices(to, row, true, METRICSEG_CODE);
}

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

METRICSEG_CALLED inline void copy_async(void* to, const void* from, int bytes = 16) {
  cuda_host::send({to, from, bytes, cuda_host::block.running->groups, {}}, METRICSEG_CODE);
}
METRICSEG_UNWATCHED inline void commit_copies() { ++cuda_host::block.running->groups; }
template <int Left>
METRICSEG_CALLED void wait_copies() {
  cuda_host::arrive(Left, METRICSEG_CODE);
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
