// Conversion of the tensors of torch to plain data.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "../tensor_map.h"
#include "memory.h"

namespace metricseg {

using torch::stable::Tensor;
using Optional = std::optional<Tensor>;

inline Type type_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Type::f64;
    case ScalarType::Float:
      return Type::f32;
    case ScalarType::BFloat16:
      return Type::bf16;
    case ScalarType::Half:
      return Type::f16;
    case ScalarType::Byte:
      return Type::u8;
    case ScalarType::Short:
      return Type::i16;
    case ScalarType::Int:
      return Type::i32;
    case ScalarType::Long:
      return Type::i64;
    default:
      STD_TORCH_CHECK(false, "metricseg: a tensor of a dtype that no kernel takes");
  }
  return Type::f32;
}

inline int64_t rank_of(const Tensor& tensor) { return tensor.dim(); }
inline int64_t size_of(const Tensor& tensor, int64_t dimension) { return tensor.size(dimension); }

// The data of a tensor that holds T; null if absent.
template <typename T>
T* data_of(const Optional& tensor) {
  return tensor ? static_cast<T*>(const_cast<void*>(tensor->const_data_ptr())) : nullptr;
}

inline Map map_of(const Optional& tensor) {
  if (!tensor) return {};
  return make_map(tensor->const_data_ptr(), type_of(*tensor), tensor->dim(),
                  [&](int64_t i) { return tensor->stride(i); });
}

// For a tensor on the CPU, or none, that is about to be written for the first time.
inline void expect_writes(const Optional& tensor) {
  if (tensor) advise_huge_pages(data_of<char>(tensor), tensor->numel() * bytes_of(type_of(*tensor)));
}

// The same, of a tensor of which each value is written once. A large one is not read from the caches afterwards anyway,
// and they need not fetch what will be overwritten.
inline Map fresh_map_of(const Optional& tensor) {
  constexpr int64_t kCached = int64_t{8} << 20;
  expect_writes(tensor);
  Map map = map_of(tensor);
  map.streams = tensor && tensor->numel() * map.size > kCached;
  return map;
}

}  // namespace metricseg
