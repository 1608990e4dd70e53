// Work shared among the threads of torch, as many as torch.set_num_threads allows.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "memory.h"

namespace metricseg {

// f(begin, end) on disjoint ranges that cover [0, n), none shorter than `grain` without need.
template <typename F>
void parallel(int64_t n, int64_t grain, const F& f) {
  if (n <= 0) return;
  torch::stable::parallel_for(0, n, grain > 0 ? grain : 1, [&](int64_t begin, int64_t end) {
    f(begin, end);
#if defined(__x86_64__)
    __builtin_ia32_sfence();  // what was written past the caches is there before the thread is done
#endif
  });
}

}  // namespace metricseg
