// Huge pages for memory that is written for the first time.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "torch_map.h"

namespace metricseg {

// Asks the kernel to back a large fresh tensor by huge pages. A gradient of 32 MB is 8,192 pages, and the faults of its
// first touch cost as much as filling it ten times over; where huge pages are given on request (Linux' "madvise") they
// cost a quarter of that, unless the host of a virtual machine must find the memory first. Elsewhere nothing changes.
inline void want_huge_pages(const torch::stable::Tensor& room) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kWorth = 4 << 20;
  static const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(room.const_data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + room.numel() * bytes_of(type_of(room))) / page * page;
  if (last >= first + kWorth) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace metricseg
