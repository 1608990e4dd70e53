// The threads of a block as fibers, and what a launch asks of the device. A warp runs until all its lanes are at a
// barrier or have ended, its lanes in turn from one exchange of the warp to the next; `seed` puts blocks, warps and
// lanes in random order. What a device would refuse, or would leave undefined, is an error.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../../../csrc/common/cuda/device_limits.h"
#include "places.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define METRICSEG_ASAN(...) __VA_ARGS__
// GCC's own: at a jump of libc the sanitizer would clear the memory of a stack
#if defined(__OPTIMIZE__)
#error "optimized, these jumps lose registers"
#endif
#define METRICSEG_SETJMP __builtin_setjmp
#define METRICSEG_LONGJMP __builtin_longjmp
using Place = void* [5];
#else
#define METRICSEG_ASAN(...)
#define METRICSEG_SETJMP _setjmp
#define METRICSEG_LONGJMP _longjmp
using Place = jmp_buf;
#endif
#if defined(__SANITIZE_THREAD__)
#include "races.h"
#define METRICSEG_RACES(...) __VA_ARGS__
#else
#define METRICSEG_RACES(...)
#endif

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_host {

constexpr size_t kStack = 256 << 10;
constexpr unsigned kWarp = 32, kMostWarps = 32;
constexpr char kBarrier[] = "__syncthreads", kSyncWarp[] = "__syncwarp";

// What a lane offers to the others of its warp.
using Words = uint64_t[6];

// 16 bytes that a thread has sent to shared memory, and the group of its copies.
struct Copy {
  void* to;
  const void* from;
  int bytes;
  unsigned group;
  char sent[16];  // what was there
};

struct Fiber {
  ucontext_t context;  // where it begins
  Place place;         // where it goes on
  std::unique_ptr<char[]> memory{new char[kStack]};
  char* stack = memory.get();
  dim3 thread;
  enum { kNew, kReady, kInWarp, kAtBarrier, kDone } state = kNew;
  const char* call;  // that it waits in
  unsigned mask;     // of that call
  int line;
  Words offered;
  std::vector<Copy> copies;  // on their way
  unsigned groups;
};

struct Block {
  std::vector<Fiber> fibers;
  Fiber* first;                              // of them
  unsigned warps[kMostWarps], lanes[kWarp];  // the order in which they run
  Place place;
  Fiber* running = nullptr;
  std::function<void()> body;
  std::unique_ptr<std::byte[]> shared;
  Words exchanged[kWarp];  // what the lanes of the warp have offered
  std::exception_ptr error;
  const void* host_stack = nullptr;
  size_t host_stack_size = 0;
};
inline Block block;
inline std::mt19937 random;
inline unsigned seed = 0;       // 0: everything in order
inline int lost_barrier = -1;   // of each block: orders nothing, to show that races are found
inline bool in_kernel = false;  // whether a thread runs, and not the shim

inline void put_in_order(unsigned* order, size_t count) {
  std::iota(order, order + count, 0u);
  if (seed != 0) std::shuffle(order, order + count, random);
}

// --- switches between the threads and the scheduler ---

#define METRICSEG_SWITCH __attribute__((no_sanitize("thread", "alignment", "address")))  // it takes jumps for returns

METRICSEG_SWITCH inline void to_scheduler([[maybe_unused]] bool leaving = false) {
  in_kernel = false;
  METRICSEG_ASAN(void* fake = nullptr;
                 __sanitizer_start_switch_fiber(leaving ? nullptr : &fake, block.host_stack, block.host_stack_size);)
  if (METRICSEG_SETJMP(block.running->place) == 0) METRICSEG_LONGJMP(block.place, 1);
  METRICSEG_ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);)
}

METRICSEG_UNWATCHED inline void enter() {
  METRICSEG_ASAN(__sanitizer_finish_switch_fiber(nullptr, &block.host_stack, &block.host_stack_size);)
  try {
    block.body();
  } catch (...) {
    block.error = std::current_exception();
  }
  block.running->state = Fiber::kDone;
  to_scheduler(true);
}

METRICSEG_SWITCH inline void resume(Fiber& fiber) {
  const bool begins = fiber.state == Fiber::kNew;
  fiber.state = Fiber::kReady;
  block.running = &fiber;
  threadIdx = fiber.thread;
  METRICSEG_RACES(races.stack = reinterpret_cast<uintptr_t>(fiber.stack); races.stack_end = races.stack + kStack;
                  races.thread = fiber.thread.x; races.active = true;)
  in_kernel = true;
  METRICSEG_ASAN(void* fake = nullptr; __sanitizer_start_switch_fiber(&fake, fiber.stack, kStack);)
  if (METRICSEG_SETJMP(block.place) == 0) {
    if (begins) setcontext(&fiber.context);
    METRICSEG_LONGJMP(fiber.place, 1);
  }
  METRICSEG_ASAN(__sanitizer_finish_switch_fiber(fake, nullptr, nullptr);)
  METRICSEG_RACES(races.active = false;)
  if (block.error) std::rethrow_exception(std::exchange(block.error, nullptr));
}

METRICSEG_UNWATCHED inline void start(Fiber& fiber, unsigned thread) {
  fiber.thread = {thread, 0, 0};
  fiber.state = Fiber::kNew;
  METRICSEG_ASAN(__asan_unpoison_memory_region(fiber.stack, kStack);)  // frames that an error has left
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

// --- where threads wait for each other ---

METRICSEG_UNWATCHED inline void wait_for_block(int line) {
  block.running->call = kBarrier;
  block.running->line = line;
  block.running->state = Fiber::kAtBarrier;
  to_scheduler();
}

// Waits until the lanes of the mask are in the same call; then block.exchanged holds what they offered.
METRICSEG_UNWATCHED inline void wait_for_warp(unsigned mask, const char* call) {
  if (~mask >> threadIdx.x % kWarp & 1) throw std::logic_error(std::string(call) + ": its mask lacks the lane itself");
  block.running->call = call;
  block.running->mask = mask;
  block.running->state = Fiber::kInWarp;
  to_scheduler();
}

// Offers a value to the lanes of the mask; then f(lane) is that of a lane.
template <typename T>
METRICSEG_UNWATCHED auto exchange(unsigned mask, const char* call, const T& mine) {
  static_assert(sizeof(T) <= sizeof(Words));
  std::memcpy(block.running->offered, &mine, sizeof(T));
  wait_for_warp(mask, call);
  return [](unsigned lane) METRICSEG_UNWATCHED {
    T value;
    std::memcpy(&value, block.exchanged[lane], sizeof(T));
    return value;
  };
}

inline std::string whereabouts(const Fiber& fiber) {
  if (fiber.state == Fiber::kDone) return "has ended";
  if (fiber.state == Fiber::kAtBarrier) return "is at __syncthreads of line " + std::to_string(fiber.line);
  char mask[16];
  std::snprintf(mask, sizeof(mask), "%#x", fiber.mask);
  return "is in " + std::string(fiber.call) + " with mask " + mask;
}
[[noreturn]] inline void part(const Fiber& one, const Fiber& other) {
  throw std::logic_error("thread " + std::to_string(one.thread.x) + " of block " + std::to_string(blockIdx.x) + " " +
                         whereabouts(one) + ", which thread " + std::to_string(other.thread.x) + " never reaches: it " +
                         whereabouts(other));
}

// Lets the lanes go on that a lane waits for, if all are there; else returns one that is not.
METRICSEG_UNWATCHED inline Fiber* release(Fiber* lanes, const Fiber& waiting) {
  const unsigned mask = waiting.mask;
  for (unsigned i = 0; i < kWarp; ++i) {
    const bool there = lanes[i].state == Fiber::kInWarp && lanes[i].mask == mask &&
                       (lanes[i].call == waiting.call || std::strcmp(lanes[i].call, waiting.call) == 0);
    if ((mask >> i & 1) && !there) return &lanes[i];
  }
  METRICSEG_RACES(if (waiting.call == kSyncWarp) races.sync_warp(mask);)
  for (unsigned i = 0; i < kWarp; ++i) {
    if (~mask >> i & 1) continue;
    std::memcpy(block.exchanged[i], lanes[i].offered, sizeof(Words));
    lanes[i].state = Fiber::kReady;
  }
  return nullptr;
}

// Runs the lanes of a warp until all are at a barrier, or have ended.
METRICSEG_UNWATCHED inline void run_warp(Fiber* lanes) {
  for (bool released = true; released;) {
    released = false;
    for (const unsigned lane : block.lanes) {
      if (lanes[lane].state <= Fiber::kReady) resume(lanes[lane]);
    }
    Fiber *waits = nullptr, *missing = nullptr;  // the first of each
    for (unsigned i = 0; i < kWarp; ++i) {
      if (lanes[i].state != Fiber::kInWarp) continue;
      Fiber* const lacks = release(lanes, lanes[i]);
      released |= lacks == nullptr;
      if (lacks != nullptr && waits == nullptr) waits = &lanes[i], missing = lacks;
    }
    if (waits != nullptr && !released) part(*waits, *missing);
  }
}

// Whether all threads have ended; else all are at the same barrier.
inline bool check_together(unsigned threads) {
  const auto differs = [](const Fiber& a) {
    const Fiber& b = *block.first;
    return a.state != b.state || (a.state == Fiber::kAtBarrier && a.line != b.line);
  };
  Fiber* const other = std::find_if(block.first, block.first + threads, differs);
  if (other == block.first + threads) return block.first->state == Fiber::kDone;
  const bool waits = block.first->state == Fiber::kAtBarrier;
  part(waits ? *block.first : *other, waits ? *other : *block.first);
}

METRICSEG_UNWATCHED inline void run_block(unsigned threads, [[maybe_unused]] unsigned number) {
  METRICSEG_RACES(int barrier = 0; races.begin_block(number);)
  for (Fiber& fiber : block.fibers) {  // copies that nobody has waited for
    METRICSEG_RACES(for (const Copy& copy : fiber.copies) races.set_pending(copy.to, 16, false);)
    fiber.copies.clear();
    fiber.groups = 0;
  }
  put_in_order(block.warps, threads / kWarp);
  put_in_order(block.lanes, kWarp);
  for (unsigned t = 0; t < threads; ++t) start(block.first[t], t);
  for (bool done = false; !done;) {  // from one barrier to the next
    for (unsigned i = 0; i < threads / kWarp; ++i) run_warp(block.first + kWarp * block.warps[i]);
    done = check_together(threads);
    for (unsigned t = 0; t < threads && !done; ++t) block.first[t].state = Fiber::kReady;
    METRICSEG_RACES(if (barrier++ != lost_barrier) races.barrier();)
  }
}

// --- launches ---

struct Launch {
  std::string kernel;
  int64_t blocks;
  int threads;
  int64_t shared;
};
inline bool only_record = false;  // launches, and run none
inline std::vector<Launch> recorded;

inline std::map<const void*, int64_t> opted_in;  // bytes of dynamic shared memory that were asked for, by kernel

inline void refuse(const std::string& what, int64_t got, int64_t most) {
  throw std::logic_error(what + ": " + std::to_string(got) + ", and a device takes at most " + std::to_string(most));
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, dim3 grid, int threads, int64_t shared_bytes, Arguments... arguments) {
  const auto* const code = reinterpret_cast<const void*>(kernel);
  const auto asked = opted_in.find(code);
  const int64_t most_shared = asked != opted_in.end() ? asked->second : metricseg::kDefaultSmem;
  const int64_t blocks = int64_t(grid.x) * grid.y * grid.z;
  try {
    if (grid.x > 0x7fffffff) refuse("blocks along x", grid.x, 0x7fffffff);
    if (std::max(grid.y, grid.z) > 65535) refuse("blocks along y or z", std::max(grid.y, grid.z), 65535);
    if (threads > int(kWarp * kMostWarps)) refuse("threads", threads, kWarp * kMostWarps);
    if (shared_bytes > most_shared) refuse("bytes of shared memory that were not asked for", shared_bytes, most_shared);
    if (blocks <= 0 || threads <= 0 || threads % kWarp != 0 || shared_bytes < 0) throw std::logic_error("bad launch");
    if (only_record) {
      static std::map<const void*, std::string> names;
      if (names[code].empty()) names[code] = line_at(code, true);
      recorded.push_back({names[code], blocks, threads, shared_bytes});
      return;
    }
    gridDim = grid;
    blockDim = {static_cast<unsigned>(threads), 1, 1};
    if (block.fibers.size() < static_cast<size_t>(threads)) block.fibers = std::vector<Fiber>(threads);
    block.first = block.fibers.data();
    block.body = [&] { kernel(arguments...); };
    misaligned.clear();
    METRICSEG_RACES(races.begin_launch();)
    std::vector<unsigned> order(blocks);
    put_in_order(order.data(), order.size());
    for (const unsigned b : order) {
      blockIdx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
      block.shared.reset(new std::byte[shared_bytes]);
      // what nothing wrote: a label far out of range, or none and NaN
      std::memset(block.shared.get(), b % 2 == 0 ? 0x7f : 0xff, shared_bytes);
      shared = reinterpret_cast<uintptr_t>(block.shared.get());
      shared_end = shared + shared_bytes;
      run_block(threads, b);
    }
    METRICSEG_RACES(if (!races.found.empty()) throw std::logic_error(races.found);)
    if (!misaligned.empty()) throw std::logic_error(misaligned);
  } catch (const std::logic_error& error) {
    throw std::logic_error(error.what() + (", in kernel " + line_at(code, true)));
  }
}

template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, int64_t blocks, int threads, int64_t shared_bytes, Arguments... arguments) {
  if (blocks <= 0 || blocks > 0x7fffffff) refuse("blocks, not 0", blocks, 0x7fffffff);
  launch(kernel, dim3{static_cast<unsigned>(blocks), 1, 1}, threads, shared_bytes, arguments...);
}

}  // namespace cuda_host

// --- -fsanitize=alignment reports to this function, which stands in for the compiler's library ---

struct MetricsegMismatch {
  const char* file;
  uint32_t line, column;
  const struct {
    uint16_t kind, info;
    char name[1];
  }* type;
  unsigned char log_alignment, kind;
};
extern "C" METRICSEG_UNWATCHED void __ubsan_handle_type_mismatch_v1(const MetricsegMismatch* m, const void* at) {
  if (!cuda_host::in_kernel || !cuda_host::misaligned.empty()) return;
  METRICSEG_RACES(cuda_host::races.active = false;)
  const std::string file = m->file;
  cuda_host::report_misaligned(m->type->name, at, 1 << m->log_alignment,
                               file.substr(file.rfind('/') + 1) + ":" + std::to_string(m->line));
  METRICSEG_RACES(cuda_host::races.active = true;)
}
