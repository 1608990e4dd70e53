// Sums of pixels by label and their gradient, without a product, over the whole map in its dtype and layout: one read of
// the features, or one write of their gradient. Sums are those of each image, or of all images together. A thread takes
// channels (sums) or pixels (gradient), so the bits do not depend on the number of threads.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "../../common/host/library.h"
#include "../../common/host/parallel.h"
#include "../../common/host/torch_map.h"

#define METRICSEG_SIMD baseline
#include "../../common/simd/simd_begin.h"

#include "../../common/simd/planes.h"

#include "../../common/simd/simd_end.h"

namespace metricseg {
namespace {

constexpr int64_t kBlock = 64;     // pixels that are read at a time
constexpr int64_t kChannels = 16;  // whose sums by class are formed together
constexpr int64_t kRun = kBlock;   // the same if channels are contiguous
constexpr int64_t kFlush = 1024;   // pixels after which their sums join the total, or more for many classes
constexpr int64_t kSpread = 1024;  // pixels that take their rows at a time

// [B, h, w]: the class of every pixel as an index into K + 1 rows, the last for pixels that have none.
std::vector<int32_t> classes_of(const Tensor& tensor, int64_t classes, int64_t ignore_index) {
  const Map labels = map_of(tensor);
  const int64_t height = tensor.size(1), width = tensor.size(2);
  std::vector<int32_t> found(tensor.numel());
  parallel(tensor.size(0) * height, 64, [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      for (int64_t x = 0; x < width; ++x) {
        const int64_t k = class_of(label_at(labels, line / height, line % height, x), classes, ignore_index);
        found[line * width + x] = static_cast<int32_t>(k >= 0 ? k : classes);
      }
    }
  });
  return found;
}

// sums[k] += sum of the values of class k, for `width` channels of an image: classes [pixels] -> sums [K, width]
template <typename T>
void sums_of(const Map& features, int64_t image, int64_t row, int64_t pixels, const int32_t* classes, int64_t K,
             int64_t channel, int64_t width, T* sums, int64_t stride) {
  const bool contiguous = features.k == 1;
  const int64_t step = contiguous ? width : kChannels;
  std::vector<T> partial((K + 1) * step);
  const auto flush = [&] {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t j = 0; j < width; ++j) sums[k * stride + j] += partial[k * step + j];
    }
    std::fill(partial.begin(), partial.end(), T(0));
  };
  T values[kChannels][kBlock] = {};
  int64_t pending = 0;
  for (int64_t first = 0; first < pixels; first += kBlock) {
    const int64_t count = std::min(kBlock, pixels - first);
    if (contiguous) {
      for (int64_t i = first; i < first + count; ++i) {
        T* const sum = partial.data() + classes[i] * step;
        baseline::read(features.type, features.at(image, channel, i / row, i % row), 1, width, values[0]);
        for (int64_t j = 0; j < width; ++j) sum[j] += values[0][j];
      }
    } else {
      for (int64_t j = 0; j < width; ++j) {
        baseline::read_pixels(features, image, channel + j, row, first, count, values[j]);
      }
      for (int64_t i = 0; i < count; ++i) {
        T* const sum = partial.data() + classes[first + i] * step;
        for (int64_t j = 0; j < kChannels; ++j) sum[j] += values[j][i];
      }
    }
    if ((pending += count) >= std::max(kFlush, 8 * K)) flush(), pending = 0;
  }
  flush();
}

// sums [groups, K, C] and mass [groups, K]: a group is an image, or all images if there is one group.
template <typename T>
void label_sums_fwd(const Tensor& features, const Tensor& labels, int64_t ignore_index, const Tensor& sums,
                    const Tensor& mass) {
  const int64_t groups = sums.size(0), K = sums.size(1), channels = sums.size(2), batch = features.size(0);
  const int64_t images = groups == 1 ? batch : 1;  // of a group
  const int64_t pixels = features.size(2) * features.size(3);
  const std::vector<int32_t> classes = classes_of(labels, K, ignore_index);
  T* const counts = data_of<T>(mass);
  for (int64_t g = 0; g < groups; ++g) {
    std::vector<int64_t> found(K + 1);
    for (int64_t i = 0; i < images * pixels; ++i) ++found[classes[g * pixels + i]];
    for (int64_t k = 0; k < K; ++k) counts[g * K + k] = static_cast<T>(found[k]);
  }
  const Map map = map_of(features);
  T* const out = data_of<T>(sums);
  const int64_t span = map.k == 1 ? kRun : kChannels, blocks = ceil_div(channels, span);
  parallel(groups * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t g = unit / blocks, channel = unit % blocks * span;
      const int64_t width = std::min(span, channels - channel);
      T* const total = out + g * K * channels + channel;
      for (int64_t k = 0; k < K; ++k) std::fill_n(total + k * channels, width, T(0));
      for (int64_t b = g; b < g + images; ++b) {
        sums_of(map, b, features.size(3), pixels, classes.data() + b * pixels, K, channel, width, total, channels);
      }
    }
  });
}

// maps_i = rows_k with k the class of i: rows [B, K + 1, C], zeros in the last.
template <typename T>
void label_sums_bwd(const Tensor& rows, const Tensor& labels, int64_t ignore_index, const Tensor& maps) {
  const int64_t batch = maps.size(0), channels = maps.size(1), pixels = maps.size(2) * maps.size(3);
  const int64_t K = rows.size(1) - 1;
  const std::vector<int32_t> classes = classes_of(labels, K, ignore_index);
  Map map = fresh_map_of(maps);
  const T* const from = data_of<T>(rows);
  const int64_t image = rows.stride(0), row = rows.stride(1), column = rows.stride(2);
  map.x = pixels > 1 ? (maps.size(3) > 1 ? map.x : map.y) : 0;  // from a pixel to the next
  const int64_t blocks = ceil_div(pixels, kSpread);
  parallel(batch * blocks, 1, [&](int64_t begin, int64_t end) {
    T values[kSpread];
    const bool gathers = K < kSpread;  // a column of the table at once: its rows may share a few sets of the cache
    std::vector<T> of_class(gathers ? K + 1 : 0);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t b = unit / blocks, first = unit % blocks * kSpread, count = std::min(kSpread, pixels - first);
      const int32_t* const known = classes.data() + b * pixels + first;
      const T* const table = from + b * image;
      char* const p = map.at(b, 0, 0, first);
      if (map.k == 1 && column == 1) {
        Map run = map;
        run.x = 1;
        for (int64_t i = 0; i < count; ++i) {
          baseline::write(run, table + known[i] * row, channels, p + i * map.x * map.size);
        }
        continue;
      }
      for (int64_t c = 0; c < channels; ++c) {
        if (gathers) {
          for (int64_t k = 0; k <= K; ++k) of_class[k] = table[k * row + c * column];
          for (int64_t i = 0; i < count; ++i) values[i] = of_class[known[i]];
        } else {
          for (int64_t i = 0; i < count; ++i) values[i] = table[known[i] * row + c * column];
        }
        baseline::write(map, values, count, p + c * map.k * map.size);
      }
    }
  });
}

void label_sums_fwd_kernel(Tensor features, Tensor labels, int64_t ignore_index, Tensor sums, Tensor mass) {
  dispatch_accumulator(type_of(sums),
                       [&](auto zero) { label_sums_fwd<decltype(zero)>(features, labels, ignore_index, sums, mass); });
}

void label_sums_bwd_kernel(Tensor rows, Tensor labels, int64_t ignore_index, Tensor maps) {
  dispatch_accumulator(type_of(rows),
                       [&](auto zero) { label_sums_bwd<decltype(zero)>(rows, labels, ignore_index, maps); });
}

}  // namespace
}  // namespace metricseg

METRICSEG_LIBRARY_IMPL(CPU, m) {
  m.impl("label_sums_fwd_kernel", TORCH_BOX(&metricseg::label_sums_fwd_kernel));
  m.impl("label_sums_bwd_kernel", TORCH_BOX(&metricseg::label_sums_bwd_kernel));
}
