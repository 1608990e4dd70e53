// 16 bytes that are read at once.
#pragma once

namespace metricseg {

template <typename T>
struct alignas(16) Vec {
  static constexpr int kCount = 16 / sizeof(T);
  T values[kCount];
};

}  // namespace metricseg
