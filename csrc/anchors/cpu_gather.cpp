// Rows of chosen pixels on the CPU: out of the feature map in place, and back into its gradient. Forward reads each
// channel of a pixel (in NCHW a cache line for each) and writes its row. Backward clears the gradient, which is nearly
// all of its traffic; then the owner of each pixel adds up its rows. See docs/kernels/anchors.md.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/torch_map.h"

#define METRICSEG_SIMD baseline
#include "../common/simd/simd_begin.h"

#include "../common/simd/convert.h"

#include "../common/simd/simd_end.h"

namespace metricseg::anchors {
namespace {

constexpr int64_t kTile = 16;
constexpr int64_t kBytes = int64_t(1) << 20;  // a share of the gradient

const int64_t* integers(const Tensor& tensor) { return static_cast<const int64_t*>(tensor.const_data_ptr()); }

// Address of channel 0 of pixel i of [B, C, h, w]; null out of range.
struct Pixels {
  Map map;
  int64_t batch, height, width;

  explicit Pixels(const Tensor& features)
      : map(map_of(features)), batch(features.size(0)), height(features.size(2)), width(features.size(3)) {}

  char* at(int64_t i) const {
    if (i < 0 || i >= batch * height * width) return nullptr;
    return map.at(i / (height * width), 0, i / width % height, i % width);
  }
};

// move(pixel, channel) for the pixels of a tile: channels first if they are contiguous, else pixels first.
template <typename F>
void sweep_tile(int64_t pixels, int64_t channels, bool channels_first, const F& move) {
  if (channels_first) {
    for (int64_t r = 0; r < pixels; ++r) {
      for (int64_t c = 0; c < channels; ++c) move(r, c);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t r = 0; r < pixels; ++r) move(r, c);
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
  parallel((n + kTile - 1) / kTile, 1, [&](int64_t begin, int64_t end) { f(begin * kTile, std::min(end * kTile, n)); });
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
void gather(const Tensor& features, const Tensor& index, bool normalize, double eps, const Tensor& rows,
            const Tensor& norms) {
  const Pixels pixels(features);
  const Type type = pixels.map.type;
  const int64_t channels = features.size(1), row_bytes = channels * pixels.map.size;
  const int64_t* chosen = integers(index);
  char* out = static_cast<char*>(rows.mutable_data_ptr());
  T* lengths = static_cast<T*>(norms.mutable_data_ptr());
  parallel_tiles(index.size(0), [&](int64_t begin, int64_t end) {
    Tile<T> tile(pixels.map, channels);
    std::vector<T> absent(channels);
    for (int64_t s = begin; s < end; s += kTile) {
      const int64_t last = std::min(s + kTile, end);
      tile.n = 0;
      for (int64_t i = s; i < last; ++i) {
        if (char* pixel = pixels.at(chosen[i])) tile.add(pixel);
      }
      tile.read();
      T* row = tile.values.data();
      for (int64_t i = s; i < last; ++i) {
        if (pixels.at(chosen[i]) != nullptr) {
          lengths[i] = normalize_row(row, channels, normalize, static_cast<T>(eps));
          baseline::write(type, row, 1, channels, out + i * row_bytes);
          row += channels;
        } else {
          std::fill(absent.begin(), absent.end(), chosen[i] == -1 ? T(0) : std::numeric_limits<T>::quiet_NaN());
          lengths[i] = T(0);
          baseline::write(type, absent.data(), 1, channels, out + i * row_bytes);
        }
      }
    }
  });
}

// G = sum of the gradients of the rows [begin, end) of one pixel, in the order of `order`; then through the
// normalization: (G - y <y, G>) / |x|, or G / eps if |x| < eps, or 0 if |x| = 0.
template <typename T>
void pixel_gradient(const Map& grad_rows, const Map& rows, const T* norms, const int64_t* order, int64_t begin,
                    int64_t end, bool normalize, T eps, int64_t channels, T* sum, T* row) {
  baseline::read(grad_rows.type, grad_rows.at(0, 0, order[begin], 0), grad_rows.x, channels, sum);
  for (int64_t i = begin + 1; i < end; ++i) {
    baseline::read(grad_rows.type, grad_rows.at(0, 0, order[i], 0), grad_rows.x, channels, row);
    for (int64_t c = 0; c < channels; ++c) sum[c] += row[c];
  }
  if (!normalize) return;
  const T norm = norms[order[begin]];
  T along = T(0);
  if (!(norm <= eps)) {
    baseline::read(rows.type, rows.at(0, 0, order[begin], 0), rows.x, channels, row);
    for (int64_t c = 0; c < channels; ++c) along += row[c] * sum[c];
  } else {
    std::fill(row, row + channels, T(0));
  }
  const T divisor = std::max(norm, eps);
  for (int64_t c = 0; c < channels; ++c) sum[c] = norm == T(0) ? T(0) : (sum[c] - row[c] * along) / divisor;
}

// [S, C] as a map of S rows and C columns.
Map matrix(const Tensor& tensor) {
  Map map;
  map.data = static_cast<char*>(const_cast<void*>(tensor.const_data_ptr()));
  map.type = type_of(tensor);
  map.size = bytes_of(map.type);
  map.y = tensor.stride(0);
  map.x = tensor.stride(1);
  return map;
}

template <typename T>
void scatter(const Tensor& grad_rows, const Tensor& rows, const Tensor& norms, const Tensor& index, const Tensor& order,
             bool normalize, double eps, const Tensor& grad) {
  const Pixels pixels(grad);
  const int64_t channels = grad.size(1), count = index.size(0);
  const int64_t* sorted = integers(index);
  const Map from = matrix(grad_rows), unit = matrix(rows);
  const T* lengths = static_cast<const T*>(norms.const_data_ptr());
  const int64_t bytes = grad.numel() * pixels.map.size;
  parallel((bytes + kBytes - 1) / kBytes, 1, [&](int64_t begin, int64_t end) {
    std::memset(pixels.map.data + begin * kBytes, 0, std::min(end * kBytes, bytes) - begin * kBytes);
  });
  parallel_tiles(count, [&](int64_t begin, int64_t end) {
    Tile<T> tile(pixels.map, channels);
    std::vector<T> row(channels);
    for (int64_t i = begin; i < end; ++i) {
      char* pixel = pixels.at(sorted[i]);
      if (pixel == nullptr || (i > 0 && sorted[i - 1] == sorted[i])) continue;  // another row owns the pixel
      int64_t last = i + 1;
      while (last < count && sorted[last] == sorted[i]) ++last;
      pixel_gradient(from, unit, lengths, integers(order), i, last, normalize, static_cast<T>(eps), channels,
                     tile.add(pixel), row.data());
      if (tile.n == kTile) tile.write();
    }
    tile.write();
  });
}

void gather_pixels_fwd_kernel(Tensor features, Tensor index, bool normalize, double eps, Tensor rows, Tensor norms) {
  const auto run = is_double(features) ? gather<double> : gather<float>;
  run(features, index, normalize, eps, rows, norms);
}

void gather_pixels_bwd_kernel(Tensor grad_rows, Tensor rows, Tensor norms, Tensor index, Tensor order, bool normalize,
                              double eps, Tensor grad) {
  const auto run = is_double(grad) ? scatter<double> : scatter<float>;
  run(grad_rows, rows, norms, index, order, normalize, eps, grad);
}

}  // namespace
}  // namespace metricseg::anchors

METRICSEG_LIBRARY_IMPL(CPU, m) {
  m.impl("gather_pixels_fwd_kernel", TORCH_BOX(&metricseg::anchors::gather_pixels_fwd_kernel));
  m.impl("gather_pixels_bwd_kernel", TORCH_BOX(&metricseg::anchors::gather_pixels_bwd_kernel));
}
