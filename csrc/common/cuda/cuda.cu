// Test whether the CUDA kernels of this extension can be launched, for metricseg_kernels/core/extension.py.
#include <string>

#include "stream.h"

namespace metricseg {
namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

std::string find_obstacle() {
  if (find_get_current_stream() == nullptr) return "this torch has no CUDA";
  int driver = 0;  // stays 0 without a driver: then there are no CUDA tensors
  cudaDriverGetVersion(&driver);
  if (driver != 0 && driver / 1000 < CUDART_VERSION / 1000) {
    return "the extension was built with CUDA " + version(CUDART_VERSION) + ", but the driver supports CUDA " +
           version(driver) + " (build it again with an older toolkit as CUDA_HOME)";
  }
  return "";
}

}  // namespace
}  // namespace metricseg

// Null if they can, else the reason.
extern "C" __attribute__((visibility("default"))) const char* metricseg_why_no_cuda() {
  static const std::string obstacle = metricseg::find_obstacle();
  return obstacle.empty() ? nullptr : obstacle.c_str();
}
