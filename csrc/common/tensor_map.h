// Dtype and layout of a tensor in memory as plain data, without a torch header, for the vector loops, CUDA kernels and
// tests.
#pragma once

#include <cstdint>

#include "macros.h"

namespace metricseg {

enum class Type : int32_t { f64, f32, bf16, f16, u8, i32, i64, i16 };

METRICSEG_HD bool is_floating(Type type) { return type <= Type::f16; }

METRICSEG_HD int64_t bytes_of(Type type) {
  if (type == Type::f64 || type == Type::i64) return 8;
  if (type == Type::f32 || type == Type::i32) return 4;
  return type == Type::u8 ? 1 : 2;
}

// f(T()), with T the type of arithmetic on values that are stored as `type`.
template <typename F>
auto dispatch_accumulator(Type type, const F& f) {
  return type == Type::f64 ? f(double()) : f(float());
}

// [B, K, z, y, x], strides in elements; an axis that the tensor lacks has stride 0. data is null for an absent tensor.
struct Map {
  char* data = nullptr;
  Type type = Type::f32;
  bool streams = false;  // to be written past the caches
  int64_t size = 4;      // bytes per element
  int64_t b = 0, k = 0, z = 0, y = 0, x = 0;

  METRICSEG_HD explicit operator bool() const { return data != nullptr; }
  METRICSEG_HD int64_t offset(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    return image * b + channel * k + row * y + column * x;
  }
  METRICSEG_HD char* at(int64_t image, int64_t channel, int64_t row, int64_t column) const {
    return data + size * offset(image, channel, row, column);
  }
  // The map of one plane of a volume.
  METRICSEG_HD Map plane(int64_t index) const {
    Map map = *this;
    map.data += size * index * z;
    return map;
  }
  template <typename T>
  METRICSEG_HD T* as() const {
    return reinterpret_cast<T*>(data);
  }
};

// The map of a tensor [B, K, z, y, x], [B, K, y, x], [B, y, x], [y, x], [x] or []; stride(i): of dimension i, in
// elements.
template <typename F>
Map make_map(const void* data, Type type, int64_t rank, const F& stride) {
  Map map;
  // torch gives null for a tensor without elements, too: any address tells it from an absent one
  map.data = data ? static_cast<char*>(const_cast<void*>(data)) : reinterpret_cast<char*>(uintptr_t(256));
  map.type = type;
  map.size = bytes_of(type);
  if (rank > 2) map.b = stride(0);
  if (rank > 3) map.k = stride(1);
  if (rank > 4) map.z = stride(2);
  if (rank > 1) map.y = stride(rank - 2);
  if (rank > 0) map.x = stride(rank - 1);
  return map;
}

// Codes of a pixel without a class; those of classes are >= 0.
constexpr int kIgnored = -1, kOutOfRange = -2;

METRICSEG_HD int64_t class_of(int64_t label, int64_t classes, int64_t ignore_index) {
  if (label == ignore_index) return kIgnored;
  return static_cast<uint64_t>(label) < static_cast<uint64_t>(classes) ? label : kOutOfRange;
}

// f(L()), with the type L of the labels.
template <typename F>
METRICSEG_HD auto dispatch_label(Type type, const F& f) {
  if (type == Type::u8) return f(uint8_t());
  if (type == Type::i32) return f(int32_t());
  return f(int64_t());
}

// The label at an offset in elements, of any label type.
METRICSEG_HD int64_t load_label(const Map& labels, int64_t offset) {
  if (labels.type == Type::u8) return reinterpret_cast<const uint8_t*>(labels.data)[offset];
  if (labels.type == Type::i32) return reinterpret_cast<const int32_t*>(labels.data)[offset];
  return reinterpret_cast<const int64_t*>(labels.data)[offset];
}

METRICSEG_HD int64_t label_at(const Map& labels, int64_t image, int64_t row, int64_t column) {
  return load_label(labels, labels.offset(image, 0, row, column));
}

}  // namespace metricseg
