// Conversion of the tensors of torch to plain data.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "../tensor_map.h"

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
    case ScalarType::Int:
      return Type::i32;
    case ScalarType::Long:
      return Type::i64;
    default:
      STD_TORCH_CHECK(false, "metricseg: a tensor of a dtype that no kernel takes");
  }
  return Type::f32;
}

// Whether arithmetic runs in fp64.
inline bool is_double(const Tensor& tensor) { return type_of(tensor) == Type::f64; }

inline int64_t bytes_of(Type type) {
  switch (type) {
    case Type::f64:
    case Type::i64:
      return 8;
    case Type::bf16:
    case Type::f16:
      return 2;
    case Type::u8:
      return 1;
    default:
      return 4;
  }
}

// [B, K, y, x] as it is; [B, y, x] without channels; an absent tensor, and one of other rank, has no data.
inline Map map_of(const Optional& tensor) {
  Map map;
  if (!tensor.has_value() || (tensor->dim() != 3 && tensor->dim() != 4)) return map;
  const int64_t channels = tensor->dim() == 4;
  map.data = static_cast<char*>(const_cast<void*>(tensor->const_data_ptr()));
  map.type = type_of(*tensor);
  map.size = bytes_of(map.type);
  map.b = tensor->stride(0);
  map.k = channels ? tensor->stride(1) : 0;
  map.y = tensor->stride(1 + channels);
  map.x = tensor->stride(2 + channels);
  return map;
}

}  // namespace metricseg
