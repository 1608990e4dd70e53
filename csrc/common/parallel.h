// Work shared out to the threads of torch, as many as torch.set_num_threads allows.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace metricseg {

// f(begin, end) on disjoint ranges that cover [0, n), none shorter than `grain` without need.
template <typename F>
void parallel(int64_t n, int64_t grain, const F& f) {
  if (n > 0) torch::stable::parallel_for(0, n, grain > 0 ? grain : 1, f);
}

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
