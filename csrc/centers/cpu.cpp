// The centers family on the CPU, beside the matrix products that Python drives (metricseg_kernels/centers/cpu.py).
//
// Panels: [C, P] of the accumulator type, pixels or channels contiguous, in cache when they come here; their pixels are
// shared out to torch's threads in blocks. One sweep gives the norms, two turn a gradient into that of the direction.
// Labels: class sums and their gradient go by label, without a product, over the whole map in its own type and layout:
// one read of the features, or one write of their gradient. A thread owns channels (sums) or pixels (gradient), so that
// the bits do not depend on the threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/pages.h"
#include "../common/parallel.h"
#include "../common/torch_map.h"

#define METRICSEG_SIMD baseline
#include "../common/simd_begin.h"

#include "../common/convert.h"

#include "../common/simd_end.h"

namespace metricseg::centers {
namespace {

using torch::stable::Tensor;

constexpr int64_t kBlock = 64;     // pixels of a panel, or of a line, at a time
constexpr int64_t kChannels = 16;  // whose sums by class go together: a cache line where channels are contiguous
constexpr int64_t kFlush = 1024;   // pixels after which their sums join the total, or more for many classes
constexpr int64_t kSpread = 1024;  // pixels that take their rows at a time

// A panel of values [channels, pixels].
template <typename T>
struct Panel {
  T* data;
  int64_t channels, pixels, channel_stride, pixel_stride;

  explicit Panel(const Tensor& tensor)
      : data(static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()))),
        channels(tensor.size(0)),
        pixels(tensor.size(1)),
        channel_stride(tensor.stride(0)),
        pixel_stride(tensor.stride(1)) {}
};

// sum_c a_c b_c
template <typename T>
T dot(const T* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t channels) {
  constexpr int kSums = 16;  // at a time, so that they become vectors
  T sums[kSums] = {}, sum = 0;
  int64_t c = 0;
  if (a_stride == 1 && b_stride == 1) {
    for (; c + kSums <= channels; c += kSums) {
      for (int j = 0; j < kSums; ++j) sums[j] += a[c + j] * b[c + j];
    }
  }
  for (; c < channels; ++c) sum += a[c * a_stride] * b[c * b_stride];
  for (const T part : sums) sum += part;
  return sum;
}

// out_i = <a_i, b_i> for the pixels [begin, end) of a block.
template <typename T>
void dots(const Panel<T>& a, const Panel<T>& b, int64_t begin, int64_t end, T* out) {
  if (a.pixel_stride != 1 || b.pixel_stride != 1) {
    for (int64_t i = begin; i < end; ++i) {
      out[i - begin] =
          dot(a.data + i * a.pixel_stride, a.channel_stride, b.data + i * b.pixel_stride, b.channel_stride, a.channels);
    }
    return;
  }
  std::fill_n(out, end - begin, T(0));
  for (int64_t c = 0; c < a.channels; ++c) {
    const T* const x = a.data + c * a.channel_stride + begin;
    const T* const y = b.data + c * b.channel_stride + begin;
    for (int64_t i = 0; i < end - begin; ++i) out[i] += x[i] * y[i];
  }
}

// y_i -= factor_i x_i for the pixels [begin, end) of a block.
template <typename T>
void subtract(const T* factors, const Panel<T>& x, const Panel<T>& y, int64_t begin, int64_t end) {
  if (x.pixel_stride != 1 || y.pixel_stride != 1) {
    for (int64_t i = begin; i < end; ++i) {
      const T* const from = x.data + i * x.pixel_stride;
      T* const to = y.data + i * y.pixel_stride;
      const T factor = factors[i - begin];
      for (int64_t c = 0; c < x.channels; ++c) to[c * y.channel_stride] -= factor * from[c * x.channel_stride];
    }
    return;
  }
  for (int64_t c = 0; c < x.channels; ++c) {
    const T* const from = x.data + c * x.channel_stride + begin;
    T* const to = y.data + c * y.channel_stride + begin;
    for (int64_t i = 0; i < end - begin; ++i) to[i] -= factors[i] * from[i];
  }
}

template <typename F>
void parallel_blocks(int64_t pixels, const F& f) {
  parallel((pixels + kBlock - 1) / kBlock, 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block) f(block * kBlock, std::min((block + 1) * kBlock, pixels));
  });
}

// norms_i = |x_i|
template <typename T>
void norms_of(const Tensor& tensor, const Tensor& norms) {
  const Panel<T> x(tensor);
  T* const out = static_cast<T*>(norms.mutable_data_ptr());
  parallel_blocks(x.pixels, [&](int64_t begin, int64_t end) {
    T squares[kBlock];
    dots(x, x, begin, end, squares);
    for (int64_t i = begin; i < end; ++i) out[i] = std::sqrt(squares[i - begin]);
  });
}

// grad_i -= x_i <grad_i, x_i> / |x_i|^2, where |x_i| >= eps
template <typename T>
void direction(const Tensor& tensor, const Tensor& norms, T eps, const Tensor& grad) {
  const Panel<T> x(tensor), g(grad);
  const T* const lengths = static_cast<const T*>(norms.const_data_ptr());
  parallel_blocks(x.pixels, [&](int64_t begin, int64_t end) {
    T along[kBlock];
    dots(x, g, begin, end, along);
    for (int64_t i = begin; i < end; ++i) {
      along[i - begin] = lengths[i] < eps ? T(0) : along[i - begin] / (lengths[i] * lengths[i]);
    }
    subtract(along, x, g, begin, end);
  });
}

// [B, h, w]: the class of every pixel as an index into K + 1 rows, the last for pixels that have none.
std::vector<int32_t> classes_of(const Tensor& tensor, int64_t classes, int64_t ignore_index) {
  const Map labels = map_of(tensor);
  const int64_t height = tensor.size(1), width = tensor.size(2);
  std::vector<int32_t> found(tensor.numel());
  parallel(tensor.size(0) * height, 64, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t x = 0; x < width; ++x) {
        const char* const p = labels.at(line / height, 0, line % height, x);
        const int64_t label = labels.type == Type::u8    ? *reinterpret_cast<const uint8_t*>(p)
                              : labels.type == Type::i32 ? *reinterpret_cast<const int32_t*>(p)
                                                         : *reinterpret_cast<const int64_t*>(p);
        const bool known = label != ignore_index && label >= 0 && label < classes;
        found[line * width + x] = static_cast<int32_t>(known ? label : classes);
      }
    }
  });
  return found;
}

// Features as lines of evenly spaced pixels: an image is one where its rows follow each other.
struct Lines {
  Map map;
  int64_t count, length;

  explicit Lines(const Tensor& features) : map(map_of(features)), count(features.size(2)), length(features.size(3)) {
    if (map.y == length * map.x) length *= count, count = length > 0;
  }

  // f(first pixel, pixels, where channel 0 of the first lies) for the blocks of an image.
  template <typename F>
  void blocks(int64_t image, const F& f) const {
    for (int64_t line = 0; line < count; ++line) {
      for (int64_t x = 0; x < length; x += kBlock) {
        f(line * length + x, std::min(kBlock, length - x), map.at(image, 0, line, x));
      }
    }
  }
};

// sums[k] = sum of the values of class k, for some channels of an image: classes [pixels] -> sums [K, width]
template <typename T>
void sums_of(const Lines& lines, int64_t image, const int32_t* classes, int64_t K, int64_t channel, int64_t width,
             T* sums, int64_t stride) {
  std::vector<T> partial((K + 1) * kChannels);
  int64_t waiting = 0;
  const auto flush = [&] {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t j = 0; j < width; ++j) sums[k * stride + j] += partial[k * kChannels + j];
    }
    std::fill(partial.begin(), partial.end(), T(0));
    waiting = 0;
  };
  for (int64_t k = 0; k < K; ++k) std::fill_n(sums + k * stride, width, T(0));
  T values[kChannels][kBlock] = {};
  lines.blocks(image, [&](int64_t first, int64_t count, const char* p) {
    for (int64_t j = 0; j < width; ++j) {
      baseline::read(lines.map.type, p + (channel + j) * lines.map.k * lines.map.size, lines.map.x, count, values[j]);
    }
    for (int64_t i = 0; i < count; ++i) {
      T* const own = partial.data() + classes[first + i] * kChannels;
      for (int64_t j = 0; j < kChannels; ++j) own[j] += values[j][i];
    }
    waiting += count;
    if (waiting >= std::max(kFlush, 8 * K)) flush();
  });
  flush();
}

template <typename T>
void label_sums(const Tensor& features, const Tensor& labels, int64_t ignore_index, const Tensor& sums,
                const Tensor& mass) {
  const int64_t batch = sums.size(0), K = sums.size(1), channels = sums.size(2);
  const int64_t pixels = features.size(2) * features.size(3);
  const std::vector<int32_t> classes = classes_of(labels, K, ignore_index);
  T* const counts = static_cast<T*>(mass.mutable_data_ptr());
  for (int64_t b = 0; b < batch; ++b) {
    std::vector<int64_t> found(K + 1);
    for (int64_t i = 0; i < pixels; ++i) ++found[classes[b * pixels + i]];
    for (int64_t k = 0; k < K; ++k) counts[b * K + k] = static_cast<T>(found[k]);
  }
  const Lines lines(features);
  T* const out = static_cast<T*>(sums.mutable_data_ptr());
  const int64_t groups = (channels + kChannels - 1) / kChannels;
  parallel(batch * groups, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / groups, channel = unit % groups * kChannels;
      sums_of(lines, b, classes.data() + b * pixels, K, channel, std::min(kChannels, channels - channel),
              out + b * K * channels + channel, channels);
    }
  });
}

// maps_i = rows_k with k the class of i: rows [B, K + 1, C], zeros in the last.
template <typename T>
void label_spread(const Tensor& rows, const Tensor& labels, int64_t ignore_index, const Tensor& maps) {
  const int64_t batch = maps.size(0), channels = maps.size(1), pixels = maps.size(2) * maps.size(3);
  const std::vector<int32_t> classes = classes_of(labels, rows.size(1) - 1, ignore_index);
  const Map map = map_of(maps);
  const T* const from = static_cast<const T*>(rows.const_data_ptr());
  const int64_t image = rows.stride(0), row = rows.stride(1), column = rows.stride(2);
  const int64_t step = pixels > 1 ? (maps.size(3) > 1 ? map.x : map.y) : 0;  // from a pixel to the next
  const int64_t blocks = (pixels + kSpread - 1) / kSpread;
  parallel(batch * blocks, 1, [&](int64_t begin, int64_t end) {
    T values[kSpread];
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / blocks, first = unit % blocks * kSpread, count = std::min(kSpread, pixels - first);
      const int32_t* const own = classes.data() + b * pixels + first;
      const T* const table = from + b * image;
      char* const p = map.at(b, 0, 0, 0) + first * step * map.size;
      if (map.k == 1 && column == 1) {
        for (int64_t i = 0; i < count; ++i) {
          baseline::write(map.type, table + own[i] * row, 1, channels, p + i * step * map.size);
        }
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t i = 0; i < count; ++i) values[i] = table[own[i] * row + c * column];
        baseline::write(map.type, values, step, count, p + c * map.k * map.size);
      }
    }
  });
}

void pixel_norms_kernel(Tensor panel, Tensor norms) {
  const auto run = type_of(panel) == Type::f64 ? norms_of<double> : norms_of<float>;
  run(panel, norms);
}

void pixel_direction_kernel(Tensor panel, Tensor norms, double eps, Tensor grad) {
  if (type_of(panel) == Type::f64) {
    direction<double>(panel, norms, eps, grad);
  } else {
    direction<float>(panel, norms, static_cast<float>(eps), grad);
  }
}

void label_sums_kernel(Tensor features, Tensor labels, int64_t ignore_index, Tensor sums, Tensor mass) {
  const auto run = type_of(sums) == Type::f64 ? label_sums<double> : label_sums<float>;
  run(features, labels, ignore_index, sums, mass);
}

void label_spread_kernel(Tensor rows, Tensor labels, int64_t ignore_index, Tensor maps) {
  want_huge_pages(maps);
  const auto run = type_of(rows) == Type::f64 ? label_spread<double> : label_spread<float>;
  run(rows, labels, ignore_index, maps);
}

}  // namespace
}  // namespace metricseg::centers

STABLE_TORCH_LIBRARY_IMPL(metricseg, CPU, m) {
  m.impl("pixel_norms_kernel", TORCH_BOX(&metricseg::centers::pixel_norms_kernel));
  m.impl("pixel_direction_kernel", TORCH_BOX(&metricseg::centers::pixel_direction_kernel));
  m.impl("label_sums_kernel", TORCH_BOX(&metricseg::centers::label_sums_kernel));
  m.impl("label_spread_kernel", TORCH_BOX(&metricseg::centers::label_spread_kernel));
}
