// Limits of a device that a launch geometry depends on.
#pragma once

#include <cstdint>

namespace metricseg {

struct DeviceLimits {
  int multiprocessors;
  int64_t smem;  // bytes of shared memory available to a block
};

}  // namespace metricseg
