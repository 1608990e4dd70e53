// Layout of a tensor in memory as plain data, without a torch header, for vector regions and tests.
#pragma once

#include <cstdint>

#include "macros.h"

namespace metricseg {

enum class Type : int32_t { f64, f32, bf16, f16, u8, i32, i64 };

// [B, K, y, x], strides in elements; an axis that the tensor lacks has stride 0. data is null for an absent tensor.
struct Map {
  char* data = nullptr;
  Type type = Type::f32;
  int64_t size = 4;  // bytes per element
  int64_t b = 0, k = 0, y = 0, x = 0;

  METRICSEG_HD explicit operator bool() const { return data != nullptr; }
  METRICSEG_HD char* at(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    return data + size * (image * b + channel * k + row * y + column * x);
  }
};

// The label of a pixel: [B, y, x] of any label type.
METRICSEG_HD int64_t label_at(const Map& labels, int64_t image, int64_t row, int64_t column) {
  const char* const p = labels.at(image, 0, row, column);
  if (labels.type == Type::u8) return *reinterpret_cast<const uint8_t*>(p);
  if (labels.type == Type::i32) return *reinterpret_cast<const int32_t*>(p);
  return *reinterpret_cast<const int64_t*>(p);
}

}  // namespace metricseg
