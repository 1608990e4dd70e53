// Checks of the tensors that an op hands to CUDA kernels, for memory safety. Python has checked the arguments of the
// user before, with better messages.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <type_traits>

#include "torch_map.h"

namespace metricseg {

using torch::headeronly::ScalarType;

template <typename T>
constexpr ScalarType kTypeOf = std::is_same_v<T, double>    ? ScalarType::Double
                               : std::is_same_v<T, int64_t> ? ScalarType::Long
                                                            : ScalarType::Float;

// Null if absent; else on the input's device, of this dtype, and contiguous if it has to be.
template <typename T>
T* pointer(const Optional& t, const Tensor& input, ScalarType type, const char* name, bool contiguous = true) {
  if (!t) return nullptr;
  STD_TORCH_CHECK(t->is_cuda() && t->get_device_index() == input.get_device_index(), "metricseg: ", name,
                  " must be on the device of input");
  STD_TORCH_CHECK(t->scalar_type() == type, "metricseg: ", name, " has the wrong dtype");
  STD_TORCH_CHECK(!contiguous || t->is_contiguous(), "metricseg: ", name, " must be contiguous");
  return static_cast<T*>(t->mutable_data_ptr());
}

inline void check_shape(const Optional& t, std::initializer_list<int64_t> shape, const char* name) {
  if (!t) return;
  bool same = t->dim() == static_cast<int64_t>(shape.size());
  for (int64_t i = 0; same && i < t->dim(); ++i) same = t->size(i) == shape.begin()[i];
  STD_TORCH_CHECK(same, "metricseg: ", name, " has the wrong shape");
}

}  // namespace metricseg
