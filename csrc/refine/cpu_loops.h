// Refined upsampling over tiles of pixels of one row. A pixel is a sum of at most 3 x 3 cells, whose weights serve all
// channels: cells are kept channels last (the panel), so each is a few vectors, and tiles of pixels are transposed on
// their way from and to memory. The gradient of a cell is added up pixel by pixel in their order, by the one thread that
// has its channels. Derivation: docs/kernels/refine.md.
#pragma once

#include "../engines/pixel_rows/tiles.h"
#include "span.h"

namespace metricseg::refine {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

template <typename T>
class Rows {
  using V = Lanes<T>;
  static constexpr int kLanes = V::count, N = kTile<T>;

  const CpuParams<T>& params;
  const int64_t image, W, stride, width;  // width: values of a cell in the panel
  T* const weights;                       // [9, stride]
  T* const offsets;                       // [3, 2, stride], column x at x + 1
  T* const displaced;                     // [2, stride]
  T* const sums;                          // [kBand, 2, stride], column x at x + 1
  Sum<T> pixels[N];
  T tile[kBlock * N];    // [channels, N]
  T turned[N * kBlock];  // [N, channels]

 public:
  METRICSEG_HD Rows(const CpuParams<T>& params, int64_t image, T* scratch)
      : params(params),
        image(image),
        W(params.width),
        stride(params.stride()),
        width(params.packed()),
        weights(scratch),
        offsets(weights + 9 * stride),
        displaced(offsets + 6 * stride),
        sums(displaced + 2 * stride) {}

  // panel of the rows of cells [begin, end)
  void pack(int64_t begin, int64_t end) {
    for (int64_t first = begin * params.cell_columns; first < end * params.cell_columns; first += N) {
      const int64_t left = end * params.cell_columns - first, n = left < N ? left : N;
      for (int64_t c = 0; c < params.channels; c += kBlock) {
        const int64_t channels = channels_from(c), packed = ceil_div(channels, kPad) * kPad;
        load_tile(from_channel(params.features, c), image, params.cell_columns, first, n, channels, tile);
        clear(tile + channels * N, (packed - channels) * N);
        turn(tile, N, packed, N, turned, kBlock);
        for (int64_t i = 0; i < n; ++i) {
          copy(turned + i * kBlock, packed, params.panel_of(image) + (first + i) * width + c);
        }
      }
    }
  }

  void upsample(int64_t begin, int64_t end) {
    const T* const panel = params.panel_of(image);
    each_tile(begin, end, false, [&](int64_t first, int64_t n) {
      for (int64_t c = 0; c < params.channels; c += kBlock) {
        const int64_t channels = channels_from(c), packed = ceil_div(channels, kPad) * kPad;
        for (int64_t i = 0; i < n; ++i) {
          T* const out = turned + i * kBlock;
          in_groups(packed, [&](auto group, int64_t j) { add_cells<group.value>(pixels[i], panel + c + j, out + j); });
        }
        for (int64_t i = n; i < N; ++i) clear(turned + i * kBlock, packed);
        turn(turned, kBlock, N, packed, tile, N);
        store_tile(tile, from_channel(params.output, c), image, W, first, n, channels);
      }
    });
  }

  // d_axis(p) = sum_c g_c(p) sum_cells dweight / dposition x_c(cell)
  void displace(int64_t begin, int64_t end) {
    const T* const panel = params.panel_of(image);
    each_tile(begin, end, true, [&](int64_t first, int64_t n) {
      V total[N][2];
      for (auto& pixel : total) pixel[0] = pixel[1] = V(T(0));
      for (int64_t c = 0; c < params.channels; c += kBlock) {
        const int64_t packed = load_gradient(first, n, c, channels_from(c));
        for (int64_t i = 0; i < n; ++i) {
          in_groups(packed, [&](auto group, int64_t j) {
            add_slopes<group.value>(pixels[i], panel + c + j, turned + i * kBlock + j, total[i]);
          });
        }
      }
      for (int axis = 0; axis < 2; ++axis) {
        T* const out = params.displacement_of(image, axis, first / W) + first % W;
        for (int64_t i = 0; i < n; ++i) out[i] = pixels[i].finite ? sum_of(total[i][axis]) : T(0);
      }
    });
  }

  // grad_features of the channels [begin, end), in `panel` [h w, end - begin]
  void spread(int64_t begin, int64_t end, T* panel) {
    const int64_t packed = end - begin;
    for (int64_t i = 0; i < params.cells() * packed; ++i) panel[i] = T(0);
    each_tile(0, params.height, false, [&](int64_t first, int64_t n) {
      for (int64_t c = begin; c < end; c += kBlock) {
        const int64_t count = load_gradient(first, n, c, end - c < channels_from(c) ? end - c : channels_from(c));
        for (int64_t i = 0; i < n; ++i) {
          const T* const g = turned + i * kBlock;
          in_groups(count, [&](auto group, int64_t j) {
            spread_gradient<group.value>(pixels[i], g + j, packed, panel + (c - begin) + j);
          });
        }
      }
    });
    for (int64_t c = begin; c < end; c += kBlock) {
      const int64_t block = end - c < kBlock ? end - c : kBlock;
      const int64_t channels = block < params.channels - c ? block : params.channels - c;
      for (int64_t first = 0; first < params.cells(); first += N) {
        const int64_t n = params.cells() - first < N ? params.cells() - first : N;
        for (int64_t i = 0; i < N; ++i) {
          if (i < n) {
            copy(panel + (first + i) * packed + (c - begin), block, turned + i * kBlock);
          } else {
            clear(turned + i * kBlock, block);
          }
        }
        turn(turned, kBlock, N, block, tile, N);
        store_tile(tile, from_channel(params.grad_features, c), image, params.cell_columns, first, n, channels);
      }
    }
  }

  // With a = softmax(l), o~ = sum_k a_k o_k, d its gradient:  do_k += a_k d,  dl_k = a_k (<d, o_k> - <d, o~>)
  void weigh(int64_t begin, int64_t end) {
    if (!params.neighbor_logits) {  // o~ = o
      for (int64_t row = begin; row < end; ++row) {
        for (int axis = 0; axis < 2; ++axis) {
          write_pixels(params.displacement_of(image, axis, row), params.grad_offsets, image, axis, W, row * W, W);
        }
      }
      return;
    }
    for (int64_t i = 0; i < 2 * kBand * stride; ++i) sums[i] = T(0);
    const int64_t first = begin > 0 ? begin - 1 : 0, last = end < params.height ? end + 1 : end;
    for (int64_t row = first; row < last; ++row) {
      load_row(row, true);
      const T* const d[2] = {params.displacement_of(image, 0, row), params.displacement_of(image, 1, row)};
      if (params.grad_offsets) {
        for (int k = 0; k < 9; ++k) {
          const int64_t to = neighbor_row(row, k / 3);
          if (to < begin || to >= end) continue;
          for (int axis = 0; axis < 2; ++axis) {
            T* const out = sums + ((to - begin) * 2 + axis) * stride + k % 3;
            for (int64_t x = 0; x < W; ++x) out[x] += d[axis][x] == T(0) ? T(0) : weights[k * stride + x] * d[axis][x];
          }
        }
      }
      if (params.grad_neighbor_logits && row >= begin && row < end) write_logits(row, d);
    }
    if (!params.grad_offsets) return;
    for (int64_t row = begin; row < end; ++row) {
      for (int axis = 0; axis < 2; ++axis) {
        T* const sum = sums + ((row - begin) * 2 + axis) * stride;
        sum[1] += sum[0];  // neighbors beyond the border are on it
        sum[W] += sum[W + 1];
        write_pixels(sum + 1, params.grad_offsets, image, axis, W, row * W, W);
      }
    }
  }

 private:
  METRICSEG_HD int64_t channels_from(int64_t c) const {
    return params.channels - c < kBlock ? params.channels - c : kBlock;
  }
  METRICSEG_HD int64_t neighbor_row(int64_t row, int64_t r) const {
    const int64_t at = row + r - 1;
    return at < 0 ? 0 : at < params.height ? at : params.height - 1;
  }
  METRICSEG_HD static Map from_channel(const Map& map, int64_t c) {
    Map part = map;
    part.data += c * map.k * map.size;
    return part;
  }
  METRICSEG_HD static void clear(T* out, int64_t n) {
    for (int64_t i = 0; i < n; i += kLanes) V(T(0)).store(out + i);
  }
  METRICSEG_HD static void copy(const T* in, int64_t n, T* out) {
    for (int64_t i = 0; i < n; i += kLanes) V::load(in + i).store(out + i);
  }

  // in [rows, columns] -> out [columns, rows], in whole vectors
  static void turn(const T* in, int64_t in_stride, int64_t rows, int64_t columns, T* out, int64_t out_stride) {
    for (int64_t c = 0; c < columns; c += kLanes) {
      for (int64_t r = 0; r < rows; r += kLanes) {
        V square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = V::load(in + (r + i) * in_stride + c);
        transpose<1>(square);
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) square[j].store(out + (c + j) * out_stride + r);
      }
    }
  }

  // The gradient of the output of a tile's pixels, [N, channels]; -> channels up to whole vectors, zeros beyond them.
  int64_t load_gradient(int64_t first, int64_t n, int64_t c, int64_t channels) {
    const int64_t packed = ceil_div(channels, kPad) * kPad;
    load_tile(from_channel(params.output, c), image, W, first, n, channels, tile);
    clear(tile + channels * N, (packed - channels) * N);
    turn(tile, N, packed, N, turned, kBlock);
    return packed;
  }

  // Rows of offsets and displacements of a row of pixels, and of neighbor weights if they are wanted.
  void load_row(int64_t row, bool weighted) {
    const T nan = std::numeric_limits<T>::quiet_NaN();
    for (int64_t i = 0; i < 2 * stride; ++i) displaced[i] = nan;
    if (!params.neighbor_logits) {
      for (int axis = 0; axis < 2; ++axis) {
        read_pixels(params.offsets, image, axis, W, row * W, W, displaced + axis * stride);
      }
      return;
    }
    for (int64_t r = 0; r < 3; ++r) {
      for (int axis = 0; axis < 2; ++axis) {
        T* const line = offsets + (r * 2 + axis) * stride;
        read_pixels(params.offsets, image, axis, W, neighbor_row(row, r) * W, W, line + 1);
        line[0] = line[1];
        line[W + 1] = line[W];
      }
    }
    for (int k = 0; k < 9; ++k) read_pixels(params.neighbor_logits, image, k, W, row * W, W, weights + k * stride);
    for (int64_t x = 0; x < W; x += kLanes) {
      V top = V::load(weights + x), total(T(0)), y(T(0)), z(T(0));
      for (int k = 1; k < 9; ++k) top = max(top, V::load(weights + k * stride + x));
      for (int k = 0; k < 9; ++k) {
        const V e = exp_below_zero(V::load(weights + k * stride + x) - top);
        e.store(weights + k * stride + x);
        total = total + e;
      }
      for (int k = 0; k < 9; ++k) {
        const V e = V::load(weights + k * stride + x);
        y = y + e * V::load(offsets + (k / 3 * 2) * stride + x + k % 3);
        z = z + e * V::load(offsets + (k / 3 * 2 + 1) * stride + x + k % 3);
        if (weighted) (e / total).store(weights + k * stride + x);
      }
      (y / total).store(displaced + x);
      (z / total).store(displaced + stride + x);
    }
  }

  void write_logits(int64_t row, const T* const (&d)[2]) {
    T* const whole = displaced;  // <d, o~>, in place
    for (int64_t x = 0; x < W; ++x) whole[x] = d[0][x] * displaced[x] + d[1][x] * displaced[stride + x];
    for (int k = 0; k < 9; ++k) {
      const T *const y = offsets + (k / 3 * 2) * stride + k % 3, *const z = y + stride;
      T* const out = weights + k * stride;
      for (int64_t x = 0; x < W; ++x) {
        const bool moves = d[0][x] != T(0) || d[1][x] != T(0);
        out[x] = moves ? out[x] * (d[0][x] * y[x] + d[1][x] * z[x] - whole[x]) : T(0);
      }
      write_pixels(out, params.grad_neighbor_logits, image, k, W, row * W, W);
    }
  }

  // f(first pixel, n) for tiles of the rows [begin, end), with `pixels` filled; `slopes`: cells count whose weight is 0.
  template <typename F>
  void each_tile(int64_t begin, int64_t end, bool slopes, const F& f) {
    for (int64_t row = begin; row < end; ++row) {
      load_row(row, false);
      for (int64_t x = 0; x < W; x += N) {
        const int64_t n = W - x < N ? W - x : N;
        for (int64_t i = 0; i < n; ++i) {
          pixels[i] = locate(params, static_cast<T>(row) + displaced[x + i],
                             static_cast<T>(x + i) + displaced[stride + x + i], slopes);
        }
        f(row * W + x, n);
      }
    }
  }

  // f(group, j) on the vectors at j of n values, group of them at once
  template <typename F>
  METRICSEG_HD static void in_groups(int64_t n, const F& f) {
    int64_t j = 0;
    for (; j + 4 * kLanes <= n; j += 4 * kLanes) f(std::integral_constant<int, 4>(), j);
    for (; j < n; j += kLanes) f(std::integral_constant<int, 1>(), j);
  }

  // out = sum over the cells of a pixel
  template <int group>
  METRICSEG_HD void add_cells(const Sum<T>& sum, const T* panel, T* out) const {
    V value[group];
    for (auto& v : value) v = V(sum.count < 0 ? std::numeric_limits<T>::quiet_NaN() : T(0));
    for (int k = 0; k < sum.count; ++k) {
      const V weight(sum.weight[k]);
      const T* const cell = panel + sum.cell[k] * width;
      for (int i = 0; i < group; ++i) value[i] = value[i] + weight * V::load(cell + i * kLanes);
    }
    for (int i = 0; i < group; ++i) value[i].store(out + i * kLanes);
  }

  // total += g sum over the cells of a pixel, by the derivatives of their weights
  template <int group>
  METRICSEG_HD void add_slopes(const Sum<T>& sum, const T* panel, const T* g, V (&total)[2]) const {
    V y[group], x[group];
    for (int i = 0; i < group; ++i) y[i] = x[i] = V(T(0));
    for (int k = 0; k < sum.count; ++k) {
      const V by_y(sum.by_y[k]), by_x(sum.by_x[k]);
      const T* const cell = panel + sum.cell[k] * width;
      for (int i = 0; i < group; ++i) {
        const V value = V::load(cell + i * kLanes);
        y[i] = y[i] + by_y * value;
        x[i] = x[i] + by_x * value;
      }
    }
    for (int i = 0; i < group; ++i) {
      const V gradient = V::load(g + i * kLanes);
      total[0] = total[0] + gradient * y[i];
      total[1] = total[1] + gradient * x[i];
    }
  }

  // cells += weight g
  template <int group>
  METRICSEG_HD static void spread_gradient(const Sum<T>& sum, const T* g, int64_t cell_values, T* panel) {
    V gradient[group];
    for (int i = 0; i < group; ++i) gradient[i] = V::load(g + i * kLanes);
    for (int k = 0; k < sum.count; ++k) {
      const V weight(sum.weight[k]);
      T* const cell = panel + sum.cell[k] * cell_values;
      for (int i = 0; i < group; ++i) {
        (V::load(cell + i * kLanes) + weight * gradient[i]).store(cell + i * kLanes);
      }
    }
  }
};

template <typename T>
void pack(const CpuParams<T>& params, int64_t image, int64_t begin, int64_t end, T* scratch) {
  Rows<T>(params, image, scratch).pack(begin, end);
}

template <typename T>
void upsample(const CpuParams<T>& params, int64_t image, int64_t begin, int64_t end, T* scratch) {
  Rows<T>(params, image, scratch).upsample(begin, end);
}

template <typename T>
void displace(const CpuParams<T>& params, int64_t image, int64_t begin, int64_t end, T* scratch) {
  Rows<T>(params, image, scratch).displace(begin, end);
}

template <typename T>
void spread(const CpuParams<T>& params, int64_t image, int64_t begin, int64_t end, T* scratch) {
  Rows<T>(params, image, scratch).spread(begin, end, scratch + params.scratch_values());
}

template <typename T>
void weigh(const CpuParams<T>& params, int64_t image, int64_t begin, int64_t end, T* scratch) {
  Rows<T>(params, image, scratch).weigh(begin, end);
}

template <typename T>
constexpr Loops<T> loops{pack<T>, upsample<T>, displace<T>, spread<T>, weigh<T>};

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::refine
