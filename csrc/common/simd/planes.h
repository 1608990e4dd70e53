// Runs of pixels of a map [B, K, y, x] by their number in the image, y w + x, for any strides: one run if the rows of
// the image follow each other, else a run per row.
#pragma once

#include "convert.h"

namespace metricseg {
namespace METRICSEG_SIMD {

// f(address, step, pixels before, pixels) for the runs of the pixels [first, first + n)
template <typename F>
METRICSEG_HD void runs(const Map& map, int64_t image, int64_t channel, int64_t width, int64_t first, int64_t n,
                       const F& f) {
  if (map.y == width * map.x) return f(map.at(image, channel, 0, first), map.x, int64_t{0}, n);
  for (int64_t done = 0; done < n;) {
    const int64_t y = (first + done) / width, x = (first + done) % width;
    const int64_t count = width - x < n - done ? width - x : n - done;
    f(map.at(image, channel, y, x), map.x, done, count);
    done += count;
  }
}

template <typename T>
void read_pixels(const Map& map, int64_t image, int64_t channel, int64_t width, int64_t first, int64_t n, T* out) {
  runs(map, image, channel, width, first, n,
       [&](const char* p, int64_t step, int64_t done, int64_t count) { read(map.type, p, step, count, out + done); });
}

template <typename T>
void write_pixels(const T* in, const Map& map, int64_t image, int64_t channel, int64_t width, int64_t first,
                  int64_t n) {
  runs(map, image, channel, width, first, n,
       [&](char* p, int64_t step, int64_t done, int64_t count) { write(map.type, in + done, step, count, p); });
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg
