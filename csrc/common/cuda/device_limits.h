// Limits of a device that a launch geometry depends on.
#pragma once

#include <cstdint>

namespace metricseg {

constexpr int kStaticSmem = 4 << 10;                    // at most, beside dynamic shared memory
constexpr int kDefaultSmem = (48 << 10) - kStaticSmem;  // more must be asked for

struct DeviceLimits {
  int multiprocessors;
  int64_t smem;  // bytes of dynamic shared memory available to a block
};

}  // namespace metricseg
