// Tiles [C, kTile] of pixels out of a map [B, C, y, x] of any type and strides, and back. If pixels are contiguous,
// rows of pixels are copied. If channels are, squares of channels and pixels are transposed in registers.
#pragma once

#include "../../common/simd/planes.h"
#include "products.h"

namespace metricseg {
namespace METRICSEG_SIMD {

// Addresses of channel 0 of the pixels of a tile; null beyond n.
template <int count>
struct Addresses {
  char* of[count] = {};

  METRICSEG_HD Addresses(const Map& map, int64_t image, int64_t width, int64_t first, int64_t n) {
    for (int64_t i = 0; i < n; ++i) of[i] = map.at(image, 0, (first + i) / width, (first + i) % width);
  }
};

// Whether a tile is full and its pixels are contiguous.
template <typename T>
METRICSEG_HD bool is_whole(const Map& map, int64_t width, int64_t n) {
  return n == kTile<T> && map.x == 1 && map.y == width;
}

// tile [C, kTile] = the pixels [first, first + n), zeros beyond n. What follows them is fetched on the way.
template <typename T>
void load_tile(const Map& map, int64_t image, int64_t width, int64_t first, int64_t n, int64_t channels, T* tile) {
  constexpr int lanes = Lanes<T>::count;
  if (is_whole<T>(map, width, n)) {
    with_storage<T>(map.type, [&](auto* stored) {
      auto* p = reinterpret_cast<decltype(stored)>(map.at(image, 0, 0, first));
      for (int64_t c = 0; c < channels; ++c, p += map.k, tile += kTile<T>) {
        __builtin_prefetch(p + kTile<T>);
        __builtin_prefetch(p + kTile<T> + lanes);
        for (int i = 0; i < kTile<T>; ++i) tile[i] = widen(p[i]);
      }
    });
    return;
  }
  if (map.k != 1) {
    for (int64_t c = 0; c < channels; ++c, tile += kTile<T>) {
      read_pixels(map, image, c, width, first, n, tile);
      for (int64_t i = n; i < kTile<T>; ++i) tile[i] = T(0);
    }
    return;
  }
  const Addresses<kTile<T>> pixels(map, image, width, first, n);
  for (int64_t c = 0; c < channels; c += lanes) {
    const int64_t count = channels - c < lanes ? channels - c : lanes;
    for (int half = 0; half < kTile<T>; half += lanes) {
      Lanes<T> square[lanes];
      if (count == lanes && pixels.of[half + lanes - 1]) {
        with_storage<T>(map.type, [&](auto* stored) {
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) {
            const auto* const p = reinterpret_cast<decltype(stored)>(pixels.of[half + i]) + c;
            __builtin_prefetch(p + lanes);
            T values[lanes];
            for (int j = 0; j < lanes; ++j) values[j] = widen(p[j]);
            square[i] = Lanes<T>::load(values);
          }
        });
      } else {
        for (int i = 0; i < lanes; ++i) {
          T values[lanes] = {};
          if (pixels.of[half + i]) read(map.type, pixels.of[half + i] + c * map.size, 1, count, values);
          square[i] = Lanes<T>::load(values);
        }
      }
      transpose<1>(square);
      for (int64_t j = 0; j < count; ++j) square[j].store(tile + (c + j) * kTile<T> + half);
    }
  }
}

// The pixels [first, first + n) = tile
template <typename T>
void store_tile(const T* tile, const Map& map, int64_t image, int64_t width, int64_t first, int64_t n,
                int64_t channels) {
  constexpr int lanes = Lanes<T>::count;
  if (is_whole<T>(map, width, n)) {
    if (map.streams && map.size == sizeof(T)) {
      for (int64_t c = 0; c < channels; ++c) write(map, tile + c * kTile<T>, kTile<T>, map.at(image, c, 0, first));
      return;
    }
    with_storage<T>(map.type, [&](auto* stored) {
      auto* p = reinterpret_cast<decltype(stored)>(map.at(image, 0, 0, first));
      for (int64_t c = 0; c < channels; ++c, p += map.k, tile += kTile<T>) {
        for (int i = 0; i < kTile<T>; ++i) narrow(tile[i], p + i);
      }
    });
    return;
  }
  if (map.k != 1) {
    for (int64_t c = 0; c < channels; ++c) write_pixels(tile + c * kTile<T>, map, image, c, width, first, n);
    return;
  }
  const Addresses<kTile<T>> pixels(map, image, width, first, n);
  for (int64_t c = 0; c < channels; c += lanes) {
    const int64_t count = channels - c < lanes ? channels - c : lanes;
    for (int half = 0; half < kTile<T>; half += lanes) {
      Lanes<T> square[lanes];
      for (int j = 0; j < lanes; ++j) {
        square[j] = j < count ? Lanes<T>::load(tile + (c + j) * kTile<T> + half) : Lanes<T>(T(0));
      }
      transpose<1>(square);
      if (count == lanes && pixels.of[half + lanes - 1]) {
        with_storage<T>(map.type, [&](auto* stored) {
#pragma GCC unroll 16
          for (int i = 0; i < lanes; ++i) {
            T values[lanes];
            square[i].store(values);
            auto* const p = reinterpret_cast<decltype(stored)>(pixels.of[half + i]) + c;
            for (int j = 0; j < lanes; ++j) narrow(values[j], p + j);
          }
        });
        continue;
      }
      for (int i = 0; i < lanes; ++i) {
        T values[lanes];
        square[i].store(values);
        if (pixels.of[half + i]) write(map.type, values, 1, count, pixels.of[half + i] + c * map.size);
      }
    }
  }
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg
