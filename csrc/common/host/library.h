// Name of the op library that the kernels are registered in, the same as in metricseg_kernels/core/names.py.
#pragma once

#include <torch/csrc/stable/library.h>

#define METRICSEG_NAMESPACE metricseg
#define METRICSEG_LIBRARY_IMPL(device, m) METRICSEG_EXPANDED(METRICSEG_NAMESPACE, device, m)
#define METRICSEG_EXPANDED(name, device, m) STABLE_TORCH_LIBRARY_IMPL(name, device, m)
