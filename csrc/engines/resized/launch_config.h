// Launch geometry of the tile walk (walk.cuh) that fits a call. It depends on neither torch nor CUDA, so that the tests
// run the same code on the host as a device does.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "../../common/cuda/device_limits.h"
#include "../../common/resize.h"

namespace metricseg::resized {

constexpr int kThreads = 128;  // of a block

struct LaunchConfig {
  int kt;       // classes that a thread holds in registers
  int groups;   // threads that share a label column, a power of two
  int columns;  // label columns that a block has in flight: kThreads / groups
  int span;     // classes of a block: kt * groups
  int class_chunks;
  int tile_y, tile_x;    // cells of a block
  int tiles_y, tiles_x;  // blocks of an image
  int halo_y, halo_x;    // intervals before the tile whose labels reach into it
  int staged;            // most cells that one chunk of columns touches
  int stride;            // of a cell or a label column in shared memory: span, or 4 more
  int skew;              // free slots between the columns of neighboring cells, against bank conflicts
  int slots;             // label columns and free slots
  bool direct;           // whether label columns are cells, side by side in memory: no shared memory then
  bool chunked;          // whether a tile takes more than one chunk of columns
  int fold_at, fraction_at, edge_at, carry_at, start_at;  // offsets in shared memory, in values
  int form_at;                                            // the same of the form, in bytes
  int64_t blocks;
  int64_t smem;  // bytes of shared memory
};

// What the form of a family brings to the walk.
struct FormTraits {
  const int* sizes;  // [count] the register tiles that kernels were compiled for
  int count;
  bool coupled;                          // whether the classes of a pixel depend on each other (softmax)
  int (*resident)(int kt, bool grad);    // blocks on a multiprocessor, so that the register tile fits
  int64_t (*smem)(const LaunchConfig&);  // bytes of shared memory beside those of the walk; or null for 0
};

namespace detail {

// The classes per thread and the threads per column with the least work. A label row takes 13 instructions for each
// class held (padding included), 286 for the scalars of a pixel and 23 for each halving of a shuffle. Coupled classes
// (softmax) share one span if any holds them all.
inline void choose_classes(LaunchConfig& config, const int* sizes, int count, int classes, bool coupled) {
  const bool one_span = coupled && classes <= 32 * *std::max_element(sizes, sizes + count);
  int64_t best = INT64_MAX;
  for (int i = 0; i < count; ++i) {
    for (int groups = 1, halvings = 0; groups <= 32; groups *= 2, ++halvings) {
      const int64_t span = int64_t(sizes[i]) * groups, chunks = ceil_div(classes, span);
      if (one_span && chunks > 1) continue;
      const int64_t work = chunks * groups * (13 * sizes[i] + 286 + 23 * halvings);
      if (work < best) {
        best = work;
        config.kt = sizes[i];
        config.groups = groups;
        config.class_chunks = static_cast<int>(chunks);
      }
    }
  }
  config.span = config.kt * config.groups;
}

// Chunks of label columns that the tiles of a row of tiles take, in all and at most.
struct Chunks {
  int64_t sum, most;
};

// The first tile has no halo, but a longer first interval; the last one may be narrower; those between are equal. But if
// the halo of the second is all of the first, that has the longer interval too.
inline Chunks count_chunks(const Axis& x, const LaunchConfig& c) {
  const auto chunks = [&](int64_t columns) { return std::max<int64_t>(1, ceil_div(columns, c.columns)); };
  const int64_t first = chunks(x.first(c.tile_x));
  if (c.tiles_x == 1) return {first, first};
  const int64_t last = chunks(x.labels - x.first(int64_t(c.tiles_x - 1) * c.tile_x - c.halo_x));
  if (c.tiles_x == 2) return {first + last, std::max(first, last)};
  const int64_t inner = chunks(x.mul > 0 ? ceil_div((c.tile_x + c.halo_x) * x.den, x.mul) : x.labels);
  const int64_t second = c.tile_x > c.halo_x ? inner : chunks(x.first(2 * c.tile_x));
  return {first + second + (c.tiles_x - 3) * inner + last, std::max({first, second, inner, last})};
}

// Lays out shared memory: see walk.cuh.
template <typename T>
void lay_out(LaunchConfig& c, bool grad) {
  if (c.direct) return;
  c.fold_at = c.staged * c.stride;
  c.fraction_at = c.fold_at + (grad ? c.slots * c.stride : 0);
  c.edge_at = c.fraction_at + (grad ? (c.staged + 3) / 4 * 4 : 0);
  c.carry_at = c.edge_at + (grad && c.chunked ? 2 * c.span * c.tile_y : 0);
  c.start_at = c.carry_at + (grad && c.chunked ? 2 * c.span : 0);
  c.smem = c.start_at * sizeof(T) + (grad ? c.staged + 1 : 0) * sizeof(int);
}

inline void add_form(LaunchConfig& c, const FormTraits& form) {
  if (form.smem == nullptr) return;
  c.form_at = static_cast<int>(ceil_div(c.smem, 16) * 16);
  c.smem = c.form_at + form.smem(c);
}

}  // namespace detail

// The geometry of the tile walk. T: the type of arithmetic.
template <typename T, typename Params>
LaunchConfig make_launch_config(const Params& p, const FormTraits& form, const DeviceLimits& device) {
  LaunchConfig config{};
  detail::choose_classes(config, form.sizes, form.count, p.classes, form.coupled);
  if (p.batch * p.y.cells * p.x.cells == 0) return config;
  const bool grad = static_cast<bool>(p.grad);
  config.columns = kThreads / config.groups;
  config.halo_y = grad && !p.y.identity();
  config.halo_x = grad && !p.x.identity();
  config.direct = p.x.identity() && p.input.x <= p.input.k && (!grad || p.grad.x <= p.grad.k);
  const int64_t h = p.y.cells, w = p.x.cells, W = std::max<int64_t>(p.x.labels, 1);
  const int64_t reach = p.x.den > 0 ? ceil_div(config.columns * p.x.mul, p.x.den) + 2 : 2;
  config.staged = static_cast<int>(std::min<int64_t>(config.columns + 1, reach));
  config.skew = W % w == 0 && (W / w) % 2 == 0;
  config.stride = config.span / 4 % 2 == 0 ? config.span + 4 : config.span;
  config.slots = config.columns + config.skew * config.staged;

  // The least time among tiles that fit. A wave takes as long as a tile of average chunks, the last one half way from
  // there to the longest tile. Time of a chunk, in label rows by the instructions of both: those of an interval, 2 for
  // bringing in and sending out a row of cells (1.5 without gradient), 4 to get going.
  constexpr int64_t kSmem = 96 << 10;
  const int64_t images = p.batch * config.class_chunks, interval = std::max<int64_t>(1, p.y.labels / h);
  LaunchConfig best{};
  int64_t least = INT64_MAX;
  for (int64_t rows = 32; rows >= 1; rows /= 2) {
    if (rows > h && rows > 1) continue;
    for (int64_t wanted = 1; wanted <= 64; wanted *= 2) {
      LaunchConfig t = config;
      t.tile_y = static_cast<int>(rows);
      t.tile_x = static_cast<int>(std::clamp<int64_t>(wanted * config.columns * w / W - config.halo_x, 1, w));
      t.tiles_y = static_cast<int>(ceil_div(h, t.tile_y));
      t.tiles_x = static_cast<int>(ceil_div(w, t.tile_x));
      const detail::Chunks chunks = detail::count_chunks(p.x, t);
      t.chunked = chunks.most > 1 || p.x.mul > p.x.den;
      t.blocks = images * t.tiles_y * t.tiles_x;
      detail::lay_out<T>(t, grad);
      detail::add_form(t, form);
      if (t.smem > std::min(kSmem, device.smem)) continue;
      const int64_t resident =
          std::clamp<int64_t>(2 * kSmem / std::max<int64_t>(t.smem, 1), 1, form.resident(t.kt, grad));
      const int64_t waves = ceil_div(t.blocks, resident * device.multiprocessors);
      const int64_t time = (rows + t.halo_y) * (2 * interval + (grad ? 4 : 3)) + 8;
      const int64_t longest = chunks.most * t.tiles_x;
      const int64_t cost = std::max(2 * longest, (2 * waves - 1) * chunks.sum + longest) * time / t.tiles_x;
      if (cost < least) {
        least = cost;
        best = t;
      }
    }
  }
  if (least == INT64_MAX) throw std::runtime_error("metricseg: no tile fits the shared memory of this device");
  return best;
}

}  // namespace metricseg::resized
