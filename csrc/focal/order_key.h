// Unsigned keys in the order of the values, NaN the largest, for radix selection.
#pragma once

#include "../common/macros.h"

namespace metricseg::focal {

template <typename T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint32_t;
};
template <>
struct KeyOf<double> {
  using type = uint64_t;
};

template <typename T>
union Bits {
  T value;
  typename KeyOf<T>::type key;
};

// Negative values in reverse, positive ones above them.
template <typename T, typename Key = typename KeyOf<T>::type>
METRICSEG_HD Key to_key(T value) {
  constexpr Key kSign = Key(1) << (8 * sizeof(Key) - 1);
  if (value != value) return ~Key(0);
  const Bits<T> bits{value};
  return bits.key & kSign ? ~bits.key : bits.key | kSign;
}

template <typename T, typename Key = typename KeyOf<T>::type>
METRICSEG_HD T from_key(Key key) {
  constexpr Key kSign = Key(1) << (8 * sizeof(Key) - 1);
  Bits<T> bits;
  bits.key = key & kSign ? key & ~kSign : ~key;
  return bits.value;
}

}  // namespace metricseg::focal
