// A block of label pixels of the walk, and access to maps at its pixels.
#pragma once

#include "../../common/simd/convert.h"
#include "../../common/simd/lanes.h"
#include "cpu_params.h"

namespace metricseg::resized {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

// P vectors of pixels.
struct Block {
  int vectors;
  bool record;           // false if the rows of a neighbor are recomputed for their share of the gradient alone
  int64_t image, z, x0;  // z: slice of a volume's labels
  int64_t y[kMaxVectors];
  const int32_t* x[kMaxVectors];  // [N] label columns counted from x0, -1 for an idle lane

  // The values that x counts, of vector p of a [B, (K,) (D,) H, W] map.
  template <typename S>
  METRICSEG_HD S* row(const Map& map, int64_t channel, int p) const {
    return reinterpret_cast<S*>(map.plane(z).at(image, channel, y[p], x0));
  }
};

// Labels out of range, and the largest of them.
struct BadLabels {
  double bad = 0, bad_label = 0;

  void note(int64_t label) {
    const double value = static_cast<double>(label);
    bad_label = bad == 0 || value > bad_label ? value : bad_label;
    bad += 1;
  }
};

// Adds a vector to sums [N] in fp64, lane by lane.
template <typename T>
METRICSEG_HD void add_lanes(Lanes<T> values, double* sums) {
  typedef double Wide __attribute__((vector_size(Lanes<T>::count * sizeof(double))));
  Wide wide;
  std::memcpy(&wide, sums, sizeof wide);
  wide += __builtin_convertvector(values.v, Wide);
  std::memcpy(sums, &wide, sizeof wide);
}

// The functions below are calls, one copy for all families.

// Class, kIgnored or kOutOfRange of the labels, of `classes` ones.
template <typename L, typename T>
inline void read_labels_as(const Maps& maps, int64_t classes, const Block& block, T* label, BadLabels* bad) {
  constexpr int N = Lanes<T>::count;
  const int64_t step = maps.target.x;
  for (int p = 0; p < block.vectors; ++p) {
    const L* row = block.row<const L>(maps.target, 0, p);
    for (int i = 0; i < N; ++i) {
      const int32_t x = block.x[p][i];
      int64_t found = kIgnored;
      if (x >= 0) {
        const int64_t value = static_cast<int64_t>(row[x * step]);
        found = class_of(value, classes, maps.ignore_index);
        if (found == kOutOfRange && block.record) bad->note(value);
      }
      label[p * N + i] = static_cast<T>(found);
    }
  }
}

template <typename T>
__attribute__((noinline)) void read_labels(const Maps& maps, int64_t classes, const Block& block, T* label,
                                           BadLabels* bad) {
  dispatch_label(maps.target.type,
                 [&](auto zero) { read_labels_as<decltype(zero)>(maps, classes, block, label, bad); });
}

// Values of a [B, (K,) H, W] map at the block's pixels; `idle` if a lane has none.
template <typename S, typename T>
inline void gather_as(const Map& map, const Block& block, int64_t channel, T idle, T* out) {
  constexpr int N = Lanes<T>::count;
  const int64_t step = map.x;
  for (int p = 0; p < block.vectors; ++p, out += N) {
    const S* const row = block.row<const S>(map, channel, p);
    const int32_t* const x = block.x[p];
    for (int i = 0; i < N; ++i) out[i] = x[i] < 0 ? idle : static_cast<T>(widen(row[x[i] * step]));
  }
}

template <typename T>
__attribute__((noinline)) void gather(const Map& map, const Block& block, int64_t channel, T idle, T* out) {
  switch (map.type) {
    case Type::f64:
      return gather_as<double>(map, block, channel, idle, out);
    case Type::bf16:
      return gather_as<BFloat16>(map, block, channel, idle, out);
    case Type::f16:
      return gather_as<Float16>(map, block, channel, idle, out);
    default:
      return gather_as<float>(map, block, channel, idle, out);
  }
}

template <typename T, typename S>
inline void scatter(const Map& map, const Block& block, int64_t channel, const T* in) {
  constexpr int N = Lanes<T>::count;
  for (int p = 0; p < block.vectors; ++p) {
    S* row = block.row<S>(map, channel, p);
    for (int i = 0; i < N; ++i) {
      const int32_t x = block.x[p][i];
      if (x >= 0) row[x * map.x] = static_cast<S>(in[p * N + i]);
    }
  }
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::resized
