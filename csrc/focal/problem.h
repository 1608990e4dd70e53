// One call of the focal family as plain data, and the launch geometry that fits it. It depends on neither torch nor
// CUDA, so that the tests run the same code on the host as a device does.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "../common/cuda/device_limits.h"
#include "../common/resize.h"

namespace metricseg::focal {

struct Strides {  // of [B, K, H, W], in elements; 0 if a dimension is shared
  int64_t b, k, y, x;

  METRICSEG_HD int64_t at(int64_t ib, int64_t ik, int64_t iy, int64_t ix) const {
    return ib * b + ik * k + iy * y + ix * x;
  }
};

// Values of a pixel for the second kernel of a chunked problem.
//   dl/dz_k = scale exp(z_k - max) - [k = t] scale (sum of the others) + smooth (ratio exp(z_k - max) - w_k)
// where the sum runs over k != t and ratio = W / sum.
template <typename T>
struct PixelGradient {
  T max, rest, scale, smooth, ratio;
};

template <typename T>
struct Problem {
  int64_t batch;
  int classes;
  Axis y, x;          // h -> H, w -> W
  const void* input;  // [B, K, h, w]
  Strides input_stride;
  int input_type;      // Scalar
  const void* target;  // labels [B, H, W], or dense [B, K, H, W]
  Strides target_stride;
  int target_type;      // Scalar
  const T* weight;      // [K] or null
  const T* keep_above;  // [] or null
  const T* grad_loss;   // [B, K, H, W] by its strides, or null for 1
  Strides grad_loss_stride;
  T gamma, smoothing, alpha;
  int64_t ignore_index;
  T* loss_map;      // [B, H, W] or [B, K, H, W], or null
  int32_t* argmax;  // [B, H, W] or null
  void* grad;       // [B, K, h, w] or null, in input_type
  Strides grad_stride;
  double* partial;           // [blocks, kSums] or null
  PixelGradient<T>* pixels;  // [B, H, W] or null
};

// loss, then the totals: valid pixels, their weights, correct pixels, labels out of range, the largest of them
constexpr int kSums = 6;

constexpr int kThreads = 128;  // of a block

// Blocks on a multiprocessor, so that the register tile fits: 128, 168 or 255 registers a lane with gradient.
template <typename T>
constexpr int resident_blocks(int kt, bool grad) {
  return (sizeof(T) == 8 || kt > 20 ? 2 : kt > 12 ? 3 : 4) + (sizeof(T) < 8 && !grad);
}

struct Plan {
  int kt;       // classes that a lane holds in registers
  int groups;   // lanes that share a label column, a power of two
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
  int fold_at, fraction_at, edge_at, carry_at, start_at;  // places in shared memory, in values
  int64_t blocks;
  int64_t shared;  // bytes
};

namespace detail {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The classes per lane and the lanes per column with the least work. A label row takes 13 instructions for each class
// held (padding included), 286 for a pixel's scalars and 23 for each halving of a shuffle: counted as in kernels.cuh.
// Coupled classes (softmax) go into one span if any holds them all.
inline void choose_classes(Plan& plan, const int* sizes, int count, int classes, bool coupled) {
  const bool one_span = coupled && classes <= 32 * *std::max_element(sizes, sizes + count);
  int64_t best = INT64_MAX;
  for (int i = 0; i < count; ++i) {
    for (int groups = 1, halvings = 0; groups <= 32; groups *= 2, ++halvings) {
      const int64_t span = int64_t(sizes[i]) * groups, chunks = ceil_div(classes, span);
      if (one_span && chunks > 1) continue;
      const int64_t work = chunks * groups * (13 * sizes[i] + 286 + 23 * halvings);
      if (work < best) {
        best = work;
        plan.kt = sizes[i];
        plan.groups = groups;
        plan.class_chunks = static_cast<int>(chunks);
      }
    }
  }
  plan.span = plan.kt * plan.groups;
}

// Chunks of label columns that the tiles of a row of tiles take, in all and at most.
struct Chunks {
  int64_t sum, most;
};

// The first tile has no halo, but a longer first interval; the last one may be narrower; those between are equal.
inline Chunks count_chunks(const Axis& x, const Plan& p) {
  const auto chunks = [&](int64_t columns) { return std::max<int64_t>(1, ceil_div(columns, p.columns)); };
  const int64_t first = chunks(x.first(p.tile_x));
  if (p.tiles_x == 1) return {first, first};
  const int64_t last = chunks(x.labels - x.first(int64_t(p.tiles_x - 1) * p.tile_x - p.halo_x));
  if (p.tiles_x == 2) return {first + last, std::max(first, last)};
  const int64_t inner = chunks(x.mul > 0 ? ceil_div((p.tile_x + p.halo_x) * x.den, x.mul) : x.labels);
  return {first + (p.tiles_x - 2) * inner + last, std::max({first, inner, last})};
}

// Lays out shared memory: see walk.cuh.
template <typename T>
void lay_out(Plan& p, bool grad) {
  if (p.direct) return;
  p.fold_at = p.staged * p.stride;
  p.fraction_at = p.fold_at + (grad ? p.slots * p.stride : 0);
  p.edge_at = p.fraction_at + (grad ? (p.staged + 3) / 4 * 4 : 0);
  p.carry_at = p.edge_at + (grad && p.chunked ? 2 * p.span * p.tile_y : 0);
  p.start_at = p.carry_at + (grad && p.chunked ? 2 * p.span : 0);
  p.shared = p.start_at * sizeof(T) + (grad ? p.staged + 1 : 0) * sizeof(int);
}

}  // namespace detail

// The geometry of the tile walk. `sizes`: the register tiles that kernels were compiled for.
template <typename T>
Plan make_plan(const Problem<T>& p, const int* sizes, int count, bool coupled, const DeviceLimits& device) {
  Plan plan{};
  detail::choose_classes(plan, sizes, count, p.classes, coupled);
  if (p.batch * p.y.cells * p.x.cells == 0) return plan;
  const bool grad = p.grad != nullptr;
  plan.columns = kThreads / plan.groups;
  plan.halo_y = grad && !p.y.identity();
  plan.halo_x = grad && !p.x.identity();
  plan.direct = p.x.identity() && p.input_stride.x <= p.input_stride.k && (!grad || p.grad_stride.x <= p.grad_stride.k);
  const int64_t h = p.y.cells, w = p.x.cells, W = std::max<int64_t>(p.x.labels, 1);
  const int64_t reach = p.x.den > 0 ? detail::ceil_div(plan.columns * p.x.mul, p.x.den) + 2 : 2;
  plan.staged = static_cast<int>(std::min<int64_t>(plan.columns + 1, reach));
  plan.skew = W % w == 0 && (W / w) % 2 == 0;
  plan.stride = plan.span / 4 % 2 == 0 ? plan.span + 4 : plan.span;
  plan.slots = plan.columns + plan.skew * plan.staged;

  // The least time among tiles that fit. A wave takes as long as a tile of average chunks, the last one half way from
  // there to the longest tile. Time of a chunk, in label rows by the instructions of both: those of an interval, 2 for
  // bringing in and sending out a row of cells (1.5 without gradient), 4 to get going.
  constexpr int64_t kShared = 96 << 10;
  const int64_t images = p.batch * plan.class_chunks, interval = std::max<int64_t>(1, p.y.labels / h);
  Plan best{};
  int64_t least = INT64_MAX;
  for (int64_t rows = 32; rows >= 1; rows /= 2) {
    if (rows > h && rows > 1) continue;
    for (int64_t wanted = 1; wanted <= 64; wanted *= 2) {
      Plan t = plan;
      t.tile_y = static_cast<int>(rows);
      t.tile_x = static_cast<int>(std::clamp<int64_t>(wanted * plan.columns * w / W - plan.halo_x, 1, w));
      t.tiles_y = static_cast<int>(detail::ceil_div(h, t.tile_y));
      t.tiles_x = static_cast<int>(detail::ceil_div(w, t.tile_x));
      const detail::Chunks chunks = detail::count_chunks(p.x, t);
      t.chunked = chunks.most > 1 || p.x.mul > p.x.den;
      t.blocks = images * t.tiles_y * t.tiles_x;
      detail::lay_out<T>(t, grad);
      if (t.shared > std::min(kShared, device.shared)) continue;
      const int64_t resident =
          std::clamp<int64_t>(2 * kShared / std::max<int64_t>(t.shared, 1), 1, resident_blocks<T>(t.kt, grad));
      const int64_t waves = detail::ceil_div(t.blocks, resident * device.multiprocessors);
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

}  // namespace metricseg::focal
