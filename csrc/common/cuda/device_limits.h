// Limits of a device that a launch geometry depends on.
#pragma once

#include <cstdint>

namespace metricseg {

struct DeviceLimits {
  int multiprocessors;
  int64_t shared;  // bytes available to a block
};

}  // namespace metricseg
