// What a launch geometry asks of a device.
#pragma once

#include <cstdint>

namespace metricseg {

struct DeviceLimits {
  int multiprocessors;
  int64_t shared;  // bytes a block may ask for
};

}  // namespace metricseg
