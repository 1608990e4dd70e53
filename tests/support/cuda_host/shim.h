// CUDA's execution model on the host, as far as the kernels need it: one fiber per thread of a block, blocks one after
// another. A warp runs until all its lanes are at a barrier, its lanes in turn from one shuffle to the next; `seed`
// puts blocks, warps and lanes in random order. Races are found by races.h. Shared memory is sized exactly and starts
// as NaN, so that address sanitizer and the results show every slip.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include "races.h"
#define METRICSEG_RACES(...) __VA_ARGS__
#else
#define METRICSEG_RACES(...)
#endif
#define METRICSEG_UNWATCHED __attribute__((no_sanitize("thread")))  // what threads share with the scheduler

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one at a time

using std::fmax;
using std::max;
using std::min;

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

// --- 16-bit floats: conversions round to nearest even ---

struct __nv_bfloat16 {
  uint16_t bits;
};
struct __half {
  uint16_t bits;
};

template <typename To, typename From>
To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __bfloat162float(__nv_bfloat16 v) { return bit_copy<float>(uint32_t(v.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const uint32_t bits = bit_copy<uint32_t>(v);
  if (v != v) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline float __half2float(__half v) {
  const int exponent = v.bits >> 10 & 31, mantissa = v.bits & 1023;
  const float sign = v.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24));
}
inline __half __float2half_rn(float v) {
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const float size = std::fabs(v);
  if (v != v) return {0x7fff};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (size < std::ldexp(1.0f, -14)) return {static_cast<uint16_t>(sign | int(std::nearbyint(std::ldexp(size, 24))))};
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // size = fraction 2^exponent, fraction in [1/2, 1)
  const int mantissa = static_cast<int>(std::nearbyint(std::ldexp(fraction, 11)));  // [1024, 2048]
  return {static_cast<uint16_t>(sign | (((exponent + 13) << 10) + mantissa))};
}

// --- fibers ---

namespace cuda_host {

constexpr size_t kStack = 256 << 10;
constexpr unsigned kWarp = 32, kMostWarps = 32;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> memory{new char[kStack]};
  char* stack = memory.get();
  dim3 thread;
  enum { kRunning, kAtShuffle, kAtBarrier, kDone } state = kRunning;
};

struct Block {
  std::vector<Fiber> fibers;
  Fiber* first;                              // of them
  unsigned warps[kMostWarps], lanes[kWarp];  // the order in which they run
  ucontext_t scheduler;
  Fiber* running = nullptr;
  std::function<void()> body;
  std::unique_ptr<std::byte[]> shared;
  uint64_t exchange[kWarp * kMostWarps];  // what each lane offers to a shuffle
  const void* host_stack = nullptr;
  size_t host_stack_size = 0;
};
inline Block block;
inline std::mt19937 random;
inline unsigned seed = 0;  // 0: everything in order

inline void put_in_order(unsigned* order, size_t count) {
  std::iota(order, order + count, 0u);
  if (seed != 0) std::shuffle(order, order + count, random);
}

METRICSEG_UNWATCHED inline void switch_to(ucontext_t& from, ucontext_t& to, const void* stack, size_t size,
                                          bool leaving) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(leaving ? nullptr : &fake, stack, size);
  swapcontext(&from, &to);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  (void)stack, (void)size, (void)leaving;
  swapcontext(&from, &to);
#endif
}

METRICSEG_UNWATCHED inline void to_scheduler(bool leaving = false) {
  switch_to(block.running->context, block.scheduler, block.host_stack, block.host_stack_size, leaving);
  threadIdx = block.running->thread;
}

METRICSEG_UNWATCHED inline void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.host_stack, &block.host_stack_size);
#endif
  block.body();
  block.running->state = Fiber::kDone;
  to_scheduler(true);
}

METRICSEG_UNWATCHED inline void wait(decltype(Fiber::state) reason) {
  block.running->state = reason;
  to_scheduler();
}

METRICSEG_UNWATCHED inline void resume(Fiber& fiber) {
  fiber.state = Fiber::kRunning;
  block.running = &fiber;
  threadIdx = fiber.thread;
  METRICSEG_RACES(races.stack = reinterpret_cast<uintptr_t>(fiber.stack); races.stack_end = races.stack + kStack;
                  races.thread = fiber.thread.x; races.active = true;)
  switch_to(block.scheduler, fiber.context, fiber.stack, kStack, false);
  METRICSEG_RACES(races.active = false;)
}

// Resumes the threads of a warp once each; they must all stop for the same reason, which it returns.
METRICSEG_UNWATCHED inline auto resume_warp(unsigned warp) {
  Fiber* const fibers = block.first + kWarp * warp;
  for (unsigned i = 0; i < kWarp; ++i) resume(fibers[block.lanes[i]]);
  for (unsigned i = 1; i < kWarp; ++i) {
    if (fibers[i].state != fibers[0].state) {
      throw std::logic_error("lanes of a warp part at a shuffle, a barrier or the end");
    }
  }
  return fibers[0].state;
}

inline void start(Fiber& fiber, unsigned thread) {
  fiber.thread = {thread, 0, 0};
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

// A barrier of each block that orders nothing, to show that races are found.
inline int lost_barrier = -1;

METRICSEG_UNWATCHED inline void run_block(unsigned threads) {
  const unsigned warps = threads / kWarp;
  METRICSEG_RACES(int barrier = 0; races.begin_block();)
  put_in_order(block.warps, warps);
  put_in_order(block.lanes, kWarp);
  for (unsigned t = 0; t < threads; ++t) start(block.first[t], t);
  unsigned done = 0;
  while (done == 0) {  // from one barrier to the next
    for (unsigned i = 0; i < warps; ++i) {
      auto state = resume_warp(block.warps[i]);
      while (state == Fiber::kAtShuffle) state = resume_warp(block.warps[i]);
      done += state == Fiber::kDone;
    }
    METRICSEG_RACES(if (barrier++ != lost_barrier) races.barrier();)
  }
  if (done != warps) throw std::logic_error("warps of a block part at a barrier or the end");
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, int64_t blocks, int threads, int64_t shared, Arguments... arguments) {
  const bool warps = threads > 0 && threads % kWarp == 0 && threads <= static_cast<int>(kWarp * kMostWarps);
  if (blocks <= 0 || !warps || shared < 0) throw std::logic_error("bad launch");
  gridDim = {static_cast<unsigned>(blocks), 1, 1};
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  if (block.fibers.size() < static_cast<size_t>(threads)) block.fibers = std::vector<Fiber>(threads);
  block.first = block.fibers.data();
  block.body = [&] { kernel(arguments...); };
  METRICSEG_RACES(races.begin_launch();)
  std::vector<unsigned> order(blocks);
  put_in_order(order.data(), order.size());
  for (unsigned b : order) {
    blockIdx = {b, 0, 0};
    block.shared.reset(new std::byte[shared]);
    std::memset(block.shared.get(), 0xff, shared);
    METRICSEG_RACES(races.shared = reinterpret_cast<uintptr_t>(block.shared.get());
                    races.shared_end = races.shared + shared;)
    run_block(threads);
  }
  METRICSEG_RACES(if (!races.found.empty()) throw std::logic_error(races.found);)
}

}  // namespace cuda_host

// --- what kernels call ---

inline void __syncthreads() { cuda_host::wait(cuda_host::Fiber::kAtBarrier); }

template <typename T>
METRICSEG_UNWATCHED T __shfl_sync(unsigned mask, T value, int lane) {
  static_assert(sizeof(T) <= 8);
  if (mask != 0xffffffffu) throw std::logic_error("partial masks are not modelled");
  uint64_t* const exchange = cuda_host::block.exchange;
  std::memcpy(&exchange[threadIdx.x], &value, sizeof(T));
  cuda_host::wait(cuda_host::Fiber::kAtShuffle);
  T other;
  std::memcpy(&other, &exchange[threadIdx.x / 32 * 32 + lane % 32], sizeof(T));
  cuda_host::wait(cuda_host::Fiber::kAtShuffle);
  return other;
}

template <typename T>
METRICSEG_UNWATCHED T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ lanes);
}

inline bool __all_sync(unsigned mask, bool value) {
  for (int lanes = 1; lanes < 32; lanes *= 2) value &= __shfl_xor_sync(mask, value, lanes);
  return value;
}

inline unsigned __ballot_sync(unsigned mask, bool value) {
  unsigned lanes = unsigned(value) << threadIdx.x % 32;
  for (int other = 1; other < 32; other *= 2) lanes |= __shfl_xor_sync(mask, lanes, other);
  return lanes;
}

inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }

template <typename T>
METRICSEG_UNWATCHED T atomicAdd(T* address, T value) {
  METRICSEG_RACES(cuda_host::races.touch(address, sizeof(T), true, true);)
  const T old = *address;
  *address += value;
  return old;
}
template <typename T>
METRICSEG_UNWATCHED T atomicMax(T* address, T value) {
  METRICSEG_RACES(cuda_host::races.touch(address, sizeof(T), true, true);)
  const T old = *address;
  *address = old < value ? value : old;
  return old;
}
template <typename T>
METRICSEG_UNWATCHED T atomicCAS(T* address, T expected, T value) {
  METRICSEG_RACES(cuda_host::races.touch(address, sizeof(T), true, true);)
  const T old = *address;
  if (old == expected) *address = value;
  return old;
}

namespace metricseg {
template <typename T>
T* shared_memory() {
  return reinterpret_cast<T*>(cuda_host::block.shared.get());
}
}  // namespace metricseg
