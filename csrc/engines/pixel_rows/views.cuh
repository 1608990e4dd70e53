// Maps [B, C, h, w] of any strides, and their tiles [rows, pixels] in shared memory: 16 bytes at a time if the layout
// allows, by asynchronous copies if the type does too; else single values, lanes along pixels or along channels.
// Pixels n = y w + x. Derivation: docs/kernels/centers.md.
#pragma once

#include <type_traits>

#include "../../common/cuda/fragments.cuh"

namespace metricseg {

constexpr int kProductThreads = 256;  // of a block

struct View {
  Map map;
  int64_t pixels, width, step;
  bool joins;    // pixel n is n step values from pixel 0
  bool vectors;  // 16-byte aligned vectors of pixels, and whole ones
  bool lasts;    // 16-byte aligned vectors of channels

  METRICSEG_HD explicit operator bool() const { return static_cast<bool>(map); }
  METRICSEG_HD int64_t offset(int64_t n) const {
    if (joins) return n * step;
    const auto at = static_cast<uint32_t>(n), columns = static_cast<uint32_t>(width);
    return at / columns * map.y + at % columns * map.x;
  }
};

inline View make_view(const Map& map, int64_t batch, int64_t rows, int64_t height, int64_t width) {
  View view{map, height * width, width, width == 1 ? map.y : map.x, false, false, false};
  view.joins = height == 1 || width == 1 || map.y == width * map.x;
  const auto image = static_cast<int64_t>(reinterpret_cast<uintptr_t>(map.data)) | (batch > 1 ? map.b * map.size : 0);
  const int64_t row = view.pixels * map.size | (rows > 1 ? map.k * map.size : 0);
  const int64_t pixel = (width > 1 ? map.x * map.size : 0) | (height > 1 ? map.y * map.size : 0);
  view.vectors = view.joins && view.step == 1 && (image | row) % 16 == 0;
  view.lasts = map.k == 1 && rows > 1 && (image | pixel) % 16 == 0;
  return view;
}

template <typename T>
constexpr Type kTypeOf = sizeof(T) == 8   ? Type::f64
                         : sizeof(T) == 4 ? Type::f32
                                          : Type::bf16;

// A tile of an image: rows from first_row on, of all_rows, and pixels from first_pixel on.
struct Place {
  int64_t image, first_row, all_rows, first_pixel;
  int rows;  // of the tile, at most its Rows
};

// f(place) for each batch of a thread; place(q, row, column) gives the offset of value q: -1 beyond the map, -2 beyond
// the tile.
template <int Rows, int Columns, int Batch, typename F>
__device__ __forceinline__ void each_value(const View& view, const Place& at, F f) {
  const bool along = view.map.k == 1 && view.step != 1;  // lanes along rows
  const int count = along ? Rows * Columns : at.rows * Columns;
#pragma unroll 1
  for (int base = threadIdx.x; base < count; base += Batch * kProductThreads) {
    f([&](int q, int& row, int& column) -> int64_t {
      const int i = base + q * kProductThreads;
      row = along ? i % Rows : i / Columns;
      column = along ? i / Rows : i % Columns;
      if (i >= count || row >= at.rows) return -2;  // beyond the tile
      const int64_t k = at.first_row + row, n = at.first_pixel + column;
      return k < at.all_rows && n < view.pixels ? k * view.map.k + view.offset(n) : -1;
    });
  }
}

// to[r * Stride + n] = the values of a tile of vectors of the same type, zeros beyond the map. They arrive with their
// group.
template <int Columns, int Stride, typename To>
__device__ __forceinline__ void copy_tile(const View& view, const Place& at, To* to) {
  constexpr int kEach = 16 / sizeof(To), kPieces = Columns / kEach;
  const To* const base = view.map.template as<const To>() + at.image * view.map.b;
#pragma unroll 1
  for (int i = threadIdx.x; i < at.rows * kPieces; i += kProductThreads) {
    const int row = i / kPieces, column = i % kPieces * kEach;
    const int64_t left = at.first_row + row < at.all_rows ? view.pixels - at.first_pixel - column : 0;
    const int count = left <= 0 ? 0 : left < kEach ? static_cast<int>(left) : kEach;
    const To* const from = count > 0 ? base + (at.first_row + row) * view.map.k + at.first_pixel + column : base;
    copy_async(to + row * Stride + column, from, count * static_cast<int>(sizeof(To)));
  }
}

// to[n * Stride + r] = the values of a tile of Columns pixels of the same type whose channels are vectors.
template <int Rows, int Columns, int Stride, typename To>
__device__ __forceinline__ void copy_transposed(const View& view, const Place& at, To* to) {
  constexpr int kEach = 16 / sizeof(To), kPieces = Rows / kEach;
  const To* const base = view.map.template as<const To>() + at.image * view.map.b;
#pragma unroll 1
  for (int i = threadIdx.x; i < Columns * kPieces; i += kProductThreads) {
    const int column = i / kPieces, row = i % kPieces * kEach;
    const int64_t n = at.first_pixel + column, left = n < view.pixels ? at.all_rows - at.first_row - row : 0;
    const int count = left <= 0 ? 0 : left < kEach ? static_cast<int>(left) : kEach;
    const To* const from = count > 0 ? base + view.offset(n) + at.first_row + row : base;
    copy_async(to + column * Stride + row, from, count * static_cast<int>(sizeof(To)));
  }
}

// to[r * Stride + n] = the values of a tile as To, zeros beyond the map. Copies arrive with their group; other values
// are there after a barrier.
template <typename T, int Rows, int Columns, int Stride, typename To>
__device__ __forceinline__ void load_tile(const View& view, const Place& at, To* to) {
  if (view.vectors && view.map.type == kTypeOf<To>) return copy_tile<Columns, Stride>(view, at, to);
  with_storage<T>(view.map, [&](auto* data) {
    using Stored = std::remove_reference_t<decltype(*data)>;
    data += at.image * view.map.b;
    if (!std::is_same_v<Stored, To> && view.vectors) {
      constexpr int kEach = 16 / sizeof(Stored), kPieces = Columns / kEach;
#pragma unroll 1
      for (int i = threadIdx.x; i < at.rows * kPieces; i += kProductThreads) {
        const int row = i / kPieces, column = i % kPieces * kEach;
        const int64_t k = at.first_row + row, n = at.first_pixel + column;
        Vec<Stored> vector{};
        if (k < at.all_rows && n < view.pixels)
          vector = *reinterpret_cast<const Vec<Stored>*>(data + k * view.map.k + n);
#pragma unroll
        for (int v = 0; v < kEach; ++v) narrow(widen<T>(vector.values[v]), to[row * Stride + column + v]);
      }
      return;
    }
    constexpr int kBatch = 4;  // loads, before the first is stored
    each_value<Rows, Columns, kBatch>(view, at, [&](auto place) {
      T values[kBatch];
      int places[kBatch];
#pragma unroll
      for (int q = 0; q < kBatch; ++q) {
        int row, column;
        const int64_t offset = place(q, row, column);
        values[q] = offset >= 0 ? widen<T>(data[offset]) : T(0);
        places[q] = offset > -2 ? row * Stride + column : -1;
      }
#pragma unroll
      for (int q = 0; q < kBatch; ++q) {
        if (places[q] >= 0) narrow(values[q], to[places[q]]);
      }
    });
  });
}

// The values of a tile of the map = from[r * Stride + n].
template <typename T, int Rows, int Columns, int Stride, typename From>
__device__ __forceinline__ void store_tile(const View& view, const Place& at, const From* from) {
  with_storage<T>(view.map, [&](auto* data) {
    using Stored = std::remove_reference_t<decltype(*data)>;
    data += at.image * view.map.b;
    if (view.vectors) {
      constexpr int kEach = 16 / sizeof(Stored), kPieces = Columns / kEach;
#pragma unroll 1
      for (int i = threadIdx.x; i < at.rows * kPieces; i += kProductThreads) {
        const int row = i / kPieces, column = i % kPieces * kEach;
        const int64_t k = at.first_row + row, n = at.first_pixel + column;
        if (k >= at.all_rows || n >= view.pixels) continue;
        Vec<Stored> vector;
#pragma unroll
        for (int v = 0; v < kEach; ++v) narrow(widen<T>(from[row * Stride + column + v]), vector.values[v]);
        *reinterpret_cast<Vec<Stored>*>(data + k * view.map.k + n) = vector;
      }
      return;
    }
    each_value<Rows, Columns, 1>(view, at, [&](auto place) {
      int row, column;
      const int64_t offset = place(0, row, column);
      if (offset >= 0) narrow(widen<T>(from[row * Stride + column]), data[offset]);
    });
  });
}

// The values of a tile of the map, of the same type and with vectors of channels, = from[n * Stride + r].
template <int Rows, int Columns, int Stride, typename From>
__device__ __forceinline__ void store_transposed(const View& view, const Place& at, const From* from) {
  constexpr int kEach = 16 / sizeof(From), kPieces = Rows / kEach;
  From* const base = view.map.template as<From>() + at.image * view.map.b;
#pragma unroll 1
  for (int i = threadIdx.x; i < Columns * kPieces; i += kProductThreads) {
    const int column = i / kPieces, row = i % kPieces * kEach;
    const int64_t n = at.first_pixel + column, left = n < view.pixels ? at.all_rows - at.first_row - row : 0;
    if (left <= 0) continue;
    From* const to = base + view.offset(n) + at.first_row + row;
    const From* const values = from + column * Stride + row;
    if (left >= kEach) {
      *reinterpret_cast<Vec<From>*>(to) = *reinterpret_cast<const Vec<From>*>(values);
    } else {
      for (int v = 0; v < left; ++v) to[v] = values[v];
    }
  }
}

}  // namespace metricseg
