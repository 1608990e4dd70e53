// Scratch memory for the loops.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace metricseg {

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Uninitialized memory on a cache line's border.
template <typename T>
std::unique_ptr<T[], Free> aligned_values(int64_t count) {
  const std::size_t bytes = (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes > 0 ? bytes : 64);
  if (p == nullptr) throw std::bad_alloc();
  return std::unique_ptr<T[], Free>(static_cast<T*>(p));
}

}  // namespace metricseg
