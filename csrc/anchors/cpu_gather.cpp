// Rows of chosen pixels on the CPU: out of the feature map in place, and back into its gradient. Forward reads each
// channel of a pixel (in NCHW a cache line for each) and writes its row. Backward clears the gradient, which is nearly
// all of its traffic; then one thread per pixel adds up the rows of that pixel. See docs/kernels/anchors.md.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/torch_map.h"
#include "arguments.h"

#define METRICSEG_SIMD baseline
#include "../common/simd/simd_begin.h"

#include "../common/simd/convert.h"

#include "../common/simd/simd_end.h"

namespace metricseg::anchors {
namespace {

constexpr int64_t kTile = 16;
constexpr int64_t kBytes = int64_t(1) << 20;  // a share of the gradient

// copy(pixel, channel) for the pixels of a tile: channels first if they are contiguous, else pixels first.
template <typename F>
void sweep_tile(int64_t pixels, int64_t channels, bool channels_first, const F& copy) {
  if (channels_first) {
    for (int64_t r = 0; r < pixels; ++r) {
      for (int64_t c = 0; c < channels; ++c) copy(r, c);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t r = 0; r < pixels; ++r) copy(r, c);
    }
  }
}

// Pixels of a map, and their values as rows [n, C] of T.
template <typename T>
struct Tile {
  const Map& map;
  int64_t channels, n = 0;
  char* pixels[kTile] = {};
  std::vector<T> values;

  Tile(const Map& from, int64_t width) : map(from), channels(width), values(kTile * width) {}

  T* add(char* pixel) {
    pixels[n] = pixel;
    return values.data() + n++ * channels;
  }
  void read() {
    baseline::with_storage<T>(map.type, [&](auto* stored) {
      using S = std::remove_pointer_t<decltype(stored)>;
      sweep_tile(n, channels, map.k == 1, [&](int64_t r, int64_t c) {
        values[r * channels + c] = baseline::widen(reinterpret_cast<const S*>(pixels[r])[c * map.k]);
      });
    });
  }
  void write() {
    baseline::with_storage<T>(map.type, [&](auto* stored) {
      using S = std::remove_pointer_t<decltype(stored)>;
      sweep_tile(n, channels, map.k == 1, [&](int64_t r, int64_t c) {
        baseline::narrow(values[r * channels + c], reinterpret_cast<S*>(pixels[r]) + c * map.k);
      });
    });
    n = 0;
  }
};

// f(begin, end) on the tiles of [0, n), which threads share.
template <typename F>
void parallel_tiles(int64_t n, const F& f) {
  parallel(ceil_div(n, kTile), 1, [&](int64_t begin, int64_t end) { f(begin * kTile, std::min(end * kTile, n)); });
}

// y = x / max(|x|, eps), 0 for 0; in place. -> |x|
template <typename T>
T normalize_row(T* row, int64_t channels, bool normalize, T eps) {
  T square = T(0);
  for (int64_t c = 0; c < channels; ++c) square += row[c] * row[c];
  const T norm = std::sqrt(square);
  if (normalize && square != T(0)) {
    const T divisor = std::max(norm, eps);  // NaN stays
    for (int64_t c = 0; c < channels; ++c) row[c] /= divisor;
  }
  return norm;
}

template <typename T>
void gather_fwd(const GatherParams<T>& params) {
  const Map &features = params.features, &rows = params.rows;
  const int64_t channels = params.channels;
  parallel_tiles(params.count, [&](int64_t begin, int64_t end) {
    Tile<T> tile(features, channels);
    std::vector<T> absent(channels);
    for (int64_t s = begin; s < end; s += kTile) {
      const int64_t last = std::min(s + kTile, end);
      tile.n = 0;
      for (int64_t i = s; i < last; ++i) {
        const int64_t pixel = params.index[i];
        if (params.known(pixel)) tile.add(features.data + params.offset(pixel) * features.size);
      }
      tile.read();
      T* row = tile.values.data();
      for (int64_t i = s; i < last; ++i) {
        const int64_t pixel = params.index[i];
        if (params.known(pixel)) {
          params.norms[i] = normalize_row(row, channels, params.normalize, params.eps);
          baseline::write(rows.type, row, rows.x, channels, rows.at(0, 0, i, 0));
          row += channels;
        } else {
          std::fill(absent.begin(), absent.end(), pixel == -1 ? T(0) : std::numeric_limits<T>::quiet_NaN());
          params.norms[i] = T(0);
          baseline::write(rows.type, absent.data(), rows.x, channels, rows.at(0, 0, i, 0));
        }
      }
    }
  });
}

// G = sum of the gradients of the rows of one pixel, those of the sorted indices [begin, end), in their order; then
// through the normalization: (G - y <y, G>) / |x|, or G / eps if |x| < eps, or 0 if |x| = 0.
template <typename T>
void pixel_gradient(const GatherParams<T>& params, int64_t begin, int64_t end, T* sum, T* row) {
  const int64_t channels = params.channels, first = params.order[begin];
  const auto read = [&](const Map& rows, int64_t i, T* out) {
    baseline::read(rows.type, rows.at(0, 0, i, 0), rows.x, channels, out);
  };
  read(params.grad_rows, first, sum);
  for (int64_t i = begin + 1; i < end; ++i) {
    read(params.grad_rows, params.order[i], row);
    for (int64_t c = 0; c < channels; ++c) sum[c] += row[c];
  }
  if (!params.normalize) return;
  const T norm = params.norms[first];
  T along = T(0);
  if (!(norm <= params.eps)) {
    read(params.rows, first, row);
    for (int64_t c = 0; c < channels; ++c) along += row[c] * sum[c];
  } else {
    std::fill(row, row + channels, T(0));
  }
  const T divisor = std::max(norm, params.eps);
  for (int64_t c = 0; c < channels; ++c) sum[c] = norm == T(0) ? T(0) : (sum[c] - row[c] * along) / divisor;
}

template <typename T>
void gather_bwd(const GatherParams<T>& params) {
  const Map& grad = params.features;
  const int64_t* const index = params.index;
  const int64_t bytes = params.bytes();
  parallel(ceil_div(bytes, kBytes), 1, [&](int64_t begin, int64_t end) {
    std::memset(grad.data + begin * kBytes, 0, std::min(end * kBytes, bytes) - begin * kBytes);
  });
  parallel_tiles(params.count, [&](int64_t begin, int64_t end) {
    Tile<T> tile(grad, params.channels);
    std::vector<T> row(params.channels);
    for (int64_t i = begin; i < end; ++i) {
      if (!params.known(index[i]) || (i > 0 && index[i - 1] == index[i])) continue;  // an earlier row took the pixel
      int64_t last = i + 1;
      while (last < params.count && index[last] == index[i]) ++last;
      pixel_gradient(params, i, last, tile.add(grad.data + params.offset(index[i]) * grad.size), row.data());
      if (tile.n == kTile) tile.write();
    }
    tile.write();
  });
}

template <bool backward>
void run(const GatherArguments<Tensor>& a) {
  dispatch_accumulator(type_of(a.features), [&](auto zero) {
    const auto params = a.template params<decltype(zero)>();
    if (backward) expect_writes(a.features);
    backward ? gather_bwd(params) : gather_fwd(params);
  });
}

}  // namespace
}  // namespace metricseg::anchors

METRICSEG_LIBRARY_IMPL(CPU, m) {
  using namespace metricseg::anchors;
  m.impl("gather_pixels_fwd_kernel", TORCH_BOX((&gather_pixels_fwd_kernel<metricseg::Tensor, run<false>>)));
  m.impl("gather_pixels_bwd_kernel", TORCH_BOX((&gather_pixels_bwd_kernel<metricseg::Tensor, run<true>>)));
}
