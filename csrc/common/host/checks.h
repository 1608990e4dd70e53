// Checks of the tensors that an op hands to CUDA kernels, for memory safety. Python has checked the arguments of the
// user before, with better messages.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "torch_map.h"

namespace metricseg {

using torch::headeronly::ScalarType;

inline ScalarType accumulator_of(const Tensor& tensor) {
  return type_of(tensor) == Type::f64 ? ScalarType::Double : ScalarType::Float;
}

// If present: on the device of input, of this shape and dtype, and contiguous if it has to be.
inline void check_tensor(const Optional& t, const std::vector<int64_t>& shape, const Tensor& input, ScalarType type,
                         const char* name, bool contiguous = true) {
  if (!t) return;
  STD_TORCH_CHECK(t->is_cuda() && t->get_device_index() == input.get_device_index(), "metricseg: ", name,
                  " must be on the device of input");
  STD_TORCH_CHECK(t->scalar_type() == type, "metricseg: ", name, " has the wrong dtype");
  STD_TORCH_CHECK(!contiguous || t->is_contiguous(), "metricseg: ", name, " must be contiguous");
  bool same = t->dim() == static_cast<int64_t>(shape.size());
  for (int64_t i = 0; same && i < t->dim(); ++i) same = t->size(i) == shape[i];
  STD_TORCH_CHECK(same, "metricseg: ", name, " has the wrong shape");
}

}  // namespace metricseg
