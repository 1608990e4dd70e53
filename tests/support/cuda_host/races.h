// Finds races: two threads touch a byte, one of them writes, and nothing orders them. Within a block a barrier does,
// within a warp also __syncwarp, between blocks only the end of a launch; atomics are ordered among themselves. The
// compiler reports every access (-fsanitize=thread) to the functions at the end of this file, which stand in for its
// own library.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "places.h"

#define METRICSEG_RARE __attribute__((noinline, cold))

namespace cuda_host {

class Races {
 public:
  // When a kernel runs, on which stack, as which thread, and where its block has dynamic shared memory.
  bool active = false;
  uintptr_t stack = 0, stack_end = 0;
  unsigned thread = 0;
  std::string found;  // the first race of the launch

  void begin_launch() {
    if (pages_.size() > 2048) {  // what earlier launches did is in order
      pages_.clear();
      std::fill(std::begin(recent_), std::end(recent_), Recent{});
    }
    blocks_.clear();
    found.clear();
    launch_ = ++now_;
  }
  void begin_block(unsigned block) {
    barrier();
    block_ = stretch_;
    blocks_.emplace_back(block_, block);
  }
  void barrier() { stretch_ = ++now_; }
  // Orders the lanes of a mask, of the warp that runs.
  void sync_warp(unsigned mask) {
    ++now_;
    for (unsigned a = 0; a < 32; ++a) {
      if (~mask >> a & 1) continue;
      for (unsigned b = 0; b < 32; ++b) synced_[a][b] = mask >> b & 1 ? now_ : synced_[a][b];
    }
  }

  // `code` is where the access is.
  METRICSEG_QUICK void touch(const void* address, unsigned size, bool write, bool atomic, const void* code) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    if (!active || (at >= stack && at < stack_end)) return;
    active = false;  // the standard library, called from here, reports too
    check(address, size, write, atomic, code);
    active = true;
  }

  // The same of an access that the compiler takes for aligned; structs of 16 bytes may have an alignment of 8.
  METRICSEG_QUICK void touch_aligned(const void* address, unsigned size, bool write, const void* code) {
    const unsigned alignment = size < 8 ? size : 8;
    if (reinterpret_cast<uintptr_t>(address) % alignment != 0 && active && misaligned.empty()) {
      active = false;
      report_misaligned("a value of " + std::to_string(size) + " bytes", address, alignment, line_at(code));
      active = true;
    }
    touch(address, size, write, false, code);
  }

  // A copy to these bytes is on its way; until it arrives none may touch them.
  METRICSEG_UNWATCHED void set_pending(const void* address, unsigned size, bool pending) {
    const bool was = active;
    active = false;
    for (unsigned i = 0; i < size; ++i) byte_at(reinterpret_cast<uintptr_t>(address) + i).pending = pending;
    active = was;
  }

 private:
  struct Access {
    uint32_t when = 0;  // counts barriers and __syncwarp
    uint16_t thread = 0;
  };
  struct Byte {
    Access write, read;
    Access beside, elsewhere;  // the last read by another warp of the block before `read`, and by an earlier block
    uint16_t second;           // if another thread than read.thread, it has read too
    bool atomic, pending;
  };
  struct Recent {
    uintptr_t page;
    Byte* bytes;
  };
  static constexpr unsigned kPage = 4096, kRecent = 256;

  METRICSEG_QUICK uint16_t id() const { return static_cast<uint16_t>(thread); }
  METRICSEG_QUICK Byte& byte_at(uintptr_t at) {
    const uintptr_t page = at / kPage;
    Recent& recent = recent_[page % kRecent];
    if (recent.page != page) {
      auto& bytes = pages_[page];
      if (bytes == nullptr) bytes = std::make_unique<Byte[]>(kPage);
      recent = {page, bytes.get()};
    }
    return recent.bytes[at % kPage];
  }
  METRICSEG_CALLED __attribute__((optimize("O3"))) void check(const void* address, unsigned size, bool write,
                                                              bool atomic, const void* code) {
    const bool in_block = is_shared(address);
    const auto unordered = [&](Access a) METRICSEG_QUICK {
      if (a.when < block_) return !in_block && a.when >= launch_;
      if (a.when < stretch_ || a.thread == thread) return false;
      return a.thread / 32 != thread / 32 || a.when >= synced_[a.thread % 32][thread % 32];
    };
    for (unsigned i = 0; i < size; ++i) {
      Byte& b = byte_at(reinterpret_cast<uintptr_t>(address) + i);
      const auto report = [&](Access other, const char* did) METRICSEG_RARE {
        if (!found.empty()) return;
        found = describe(in_block ? "shared" : "global", write, other, did);
        found += element_at(address, size) + ", at " + line_at(code);
      };
      if (b.pending) report(b.write, " has on its way (cp.async), ");
      if (unordered(b.write) && !(atomic && b.atomic)) report(b.write, " wrote, ");
      if (write) {
        for (const Access other : {b.read, Access{b.read.when, b.second}, b.beside, b.elsewhere}) {
          if (unordered(other)) report(other, " read, ");
        }
        b.atomic = atomic && (b.write.when != now_ || b.atomic);
        b.write = {now_, id()};
      } else if (b.read.when >= stretch_ && b.read.thread / 32 == thread / 32) {
        if (b.read.when != now_) b.read = {now_, b.second = id()};
        if (b.read.thread != thread) b.second = id();
      } else {
        if (b.read.when >= stretch_) b.beside = b.read;
        if (b.read.when < block_) b.elsewhere = b.read;
        b.read = {now_, b.second = id()};
      }
    }
  }
  std::string name(Access a) const {
    auto block = blocks_.rbegin();
    while (block->first > a.when && block + 1 != blocks_.rend()) ++block;
    return "thread " + std::to_string(a.thread) + " of block " + std::to_string(block->second);
  }
  std::string describe(const char* where, bool write, Access other, const char* did) const {
    return std::string("race in ") + where + " memory: " + name({now_, id()}) + (write ? " writes" : " reads") +
           " what " + name(other) + did;
  }

  uint32_t now_ = 0, launch_ = 0, block_ = 0, stretch_ = 0;  // stretch_: since the last barrier
  uint32_t synced_[32][32] = {};                             // the last __syncwarp of two lanes
  std::vector<std::pair<uint32_t, unsigned>> blocks_;        // when each began
  Recent recent_[kRecent] = {};
  std::unordered_map<uintptr_t, std::unique_ptr<Byte[]>> pages_;
};
inline Races races;

}  // namespace cuda_host

#define METRICSEG_HOOK extern "C" METRICSEG_UNWATCHED
#define METRICSEG_TOUCHES(size)                                                                                      \
  METRICSEG_HOOK void __tsan_read##size(void* p) { cuda_host::races.touch_aligned(p, size, false, METRICSEG_CODE); } \
  METRICSEG_HOOK void __tsan_write##size(void* p) { cuda_host::races.touch_aligned(p, size, true, METRICSEG_CODE); } \
  METRICSEG_HOOK void __tsan_unaligned_read##size(void* p) {                                                         \
    cuda_host::races.touch(p, size, false, false, METRICSEG_CODE);                                                   \
  }                                                                                                                  \
  METRICSEG_HOOK void __tsan_unaligned_write##size(void* p) {                                                        \
    cuda_host::races.touch(p, size, true, false, METRICSEG_CODE);                                                    \
  }
METRICSEG_TOUCHES(1)
METRICSEG_TOUCHES(2)
METRICSEG_TOUCHES(4)
METRICSEG_TOUCHES(8)
METRICSEG_TOUCHES(16)
METRICSEG_HOOK void __tsan_read_range(void* p, size_t n) { cuda_host::races.touch(p, n, false, false, METRICSEG_CODE); }
METRICSEG_HOOK void __tsan_write_range(void* p, size_t n) { cuda_host::races.touch(p, n, true, false, METRICSEG_CODE); }
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
