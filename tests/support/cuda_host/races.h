// Finds races: two threads touch a byte, one of them writes, and nothing orders them. Within a block a barrier does,
// between blocks only the end of a launch; atomics are ordered among themselves. The compiler reports every access
// (-fsanitize=thread) to the functions at the end of this file, which stand in for its own library.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <unordered_map>

extern "C" char __bss_start[] __attribute__((visibility("hidden")));  // static shared memory lies between these two
extern "C" char _end[] __attribute__((visibility("hidden")));

namespace cuda_host {

class Races {
 public:
  // When a kernel runs, on which stack, as which thread, and where its block has dynamic shared memory.
  bool active = false;
  uintptr_t stack = 0, stack_end = 0, shared = 0, shared_end = 0;
  unsigned thread = 0;
  std::string found;  // the first race of the launch

  void begin_launch() {
    if (pages_.size() > 4096) {  // what earlier launches did is in order
      pages_.clear();
      std::fill(std::begin(recent_), std::end(recent_), Recent{});
    }
    found.clear();
    launch_ = ++now_;
  }
  void begin_block() { block_ = ++now_; }
  void barrier() { ++now_; }

  __attribute__((no_sanitize("thread"), optimize("O3"))) void touch(const void* address, unsigned size, bool write,
                                                                    bool atomic) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    if (!active || (at >= stack && at < stack_end)) return;
    active = false;  // the standard library, called from here, reports too
    const bool in_block = (at >= shared && at < shared_end) ||
                          (at >= reinterpret_cast<uintptr_t>(__bss_start) && at < reinterpret_cast<uintptr_t>(_end));
    for (unsigned i = 0; i < size; ++i) {
      Byte& b = byte_at(at + i);
      const auto unordered = [&](uint32_t when, unsigned by) {
        if (when < block_) return !in_block && when >= launch_;
        return when == now_ && by != thread;
      };
      if (unordered(b.write, b.writer) && !(atomic && b.atomic)) report(write, true, b.writer, in_block);
      if (write) {
        const bool others = (b.read == now_ && b.many) || (!in_block && b.elsewhere >= launch_);
        if (others || unordered(b.read, b.reader)) report(true, false, b.reader, in_block);
        b.atomic = atomic && (b.write != now_ || b.atomic);
        b.write = now_;
        b.writer = static_cast<uint16_t>(thread);
      } else if (b.read == now_) {
        b.many |= b.reader != thread;
      } else {
        if (b.read < block_) b.elsewhere = b.read;
        b.read = now_;
        b.reader = static_cast<uint16_t>(thread);
        b.many = false;
      }
    }
    active = true;
  }

 private:
  // When a byte was last written and read, as numbers of the stretches between barriers, and by whom.
  struct Byte {
    uint32_t write, read, elsewhere;  // elsewhere: the last read by an earlier block
    uint16_t writer, reader;
    bool many, atomic;  // many: others have read it too since the barrier
  };
  struct Recent {
    uintptr_t page;
    Byte* bytes;
  };
  static constexpr unsigned kPage = 4096, kRecent = 256;

  __attribute__((no_sanitize("thread"), always_inline)) Byte& byte_at(uintptr_t at) {
    const uintptr_t page = at / kPage;
    Recent& recent = recent_[page % kRecent];
    if (recent.page != page) {
      auto& bytes = pages_[page];
      if (bytes == nullptr) bytes = std::make_unique<Byte[]>(kPage);
      recent = {page, bytes.get()};
    }
    return recent.bytes[at % kPage];
  }
  __attribute__((no_sanitize("thread"))) void report(bool write, bool other_wrote, unsigned other, bool in_block) {
    if (!found.empty()) return;
    found = "race in " + std::string(in_block ? "shared" : "global") + " memory: thread " + std::to_string(thread) +
            (write ? " writes" : " reads") + " what thread " + std::to_string(other) +
            (other_wrote ? " wrote" : " read") + (in_block ? "" : ", of the same block or of another");
  }

  uint32_t now_ = 0, launch_ = 0, block_ = 0;
  Recent recent_[kRecent] = {};
  std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> pages_;
};
inline Races races;

}  // namespace cuda_host

#define METRICSEG_HOOK extern "C" __attribute__((no_sanitize("thread")))
#define METRICSEG_REPORT(size)                                                                                \
  METRICSEG_HOOK void __tsan_read##size(void* p) { cuda_host::races.touch(p, size, false, false); }           \
  METRICSEG_HOOK void __tsan_write##size(void* p) { cuda_host::races.touch(p, size, true, false); }           \
  METRICSEG_HOOK void __tsan_unaligned_read##size(void* p) { cuda_host::races.touch(p, size, false, false); } \
  METRICSEG_HOOK void __tsan_unaligned_write##size(void* p) { cuda_host::races.touch(p, size, true, false); }
METRICSEG_REPORT(1)
METRICSEG_REPORT(2)
METRICSEG_REPORT(4)
METRICSEG_REPORT(8)
METRICSEG_REPORT(16)
METRICSEG_HOOK void __tsan_read_range(void* p, size_t n) { cuda_host::races.touch(p, n, false, false); }
METRICSEG_HOOK void __tsan_write_range(void* p, size_t n) { cuda_host::races.touch(p, n, true, false); }
METRICSEG_HOOK void __tsan_init() {}
METRICSEG_HOOK void __tsan_func_entry(void*) {}
METRICSEG_HOOK void __tsan_func_exit() {}
METRICSEG_HOOK void __tsan_vptr_update(void*, void*) {}
METRICSEG_HOOK void __tsan_vptr_read(void*) {}

// Atomics of the host: its library's, outside of kernels.
#define METRICSEG_ATOMIC(bits, type)                                                   \
  METRICSEG_HOOK type __tsan_atomic##bits##_load(const volatile type* p, int) {        \
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                       \
  }                                                                                    \
  METRICSEG_HOOK void __tsan_atomic##bits##_store(volatile type* p, type v, int) {     \
    __atomic_store_n(p, v, __ATOMIC_SEQ_CST);                                          \
  }                                                                                    \
  METRICSEG_HOOK type __tsan_atomic##bits##_fetch_add(volatile type* p, type v, int) { \
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);                                 \
  }                                                                                    \
  METRICSEG_HOOK type __tsan_atomic##bits##_fetch_sub(volatile type* p, type v, int) { \
    return __atomic_fetch_sub(p, v, __ATOMIC_SEQ_CST);                                 \
  }
METRICSEG_ATOMIC(8, char)
METRICSEG_ATOMIC(32, int)
METRICSEG_ATOMIC(64, long)
