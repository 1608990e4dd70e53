// Tile walk of the forms of the families (focal, region). A block owns a tile of low-resolution cells (tile_y x tile_x
// of one image, `span` classes) and walks down the label rows that reach into it, a chunk of label columns at a time. A
// thread belongs to one label column and holds KT of its classes in registers: the two cell rows around the current
// label row, interpolated horizontally (z0, z1), and the gradient that they receive (g0, g1). Nothing of label size is
// stored. At each interval of cell rows, shared memory folds the columns of g0 onto cells, one owner per (class, cell).
// Two barriers per interval, none per label row. Labels of the halo are computed twice, (1 + 1/tile_y) (1 + 1/tile_x)
// times in all. Derivation: docs/kernels/focal.md.
#pragma once

#include <limits>
#include <type_traits>

#include "../../common/cuda/reduce.cuh"
#include "../../common/cuda/sweep.cuh"
#include "tile.cuh"

namespace metricseg::resized {

// A label row as a thread sees it.
template <typename T>
struct LabelRow {
  int64_t image;
  int y, label;  // label: the class of the pixel, or a code
  bool owned;    // whether the tile counts the loss of the pixel
  T fraction;    // weight of the lower cell row
};

// At ratio 1 no 0 * inf may occur. At other ratios it does, also if a label is on a cell, as in F.interpolate.
template <typename T>
__device__ __forceinline__ T blend(const Axis& axis, T a, T b, T f) {
  return axis.identity() ? a : (T(1) - f) * a + f * b;
}

// Of all classes of a thread, with one branch instead of a selection each. The sum with 0 keeps the compiler from
// making copies ahead of the branch.
template <typename T, int KT>
__device__ __forceinline__ void blend(const Axis& axis, const T (&a)[KT], const T (&b)[KT], T f, T (&out)[KT]) {
  if (axis.identity()) {
#pragma unroll
    for (int k = 0; k < KT; ++k) out[k] = a[k] + T(0);
  } else {
#pragma unroll
    for (int k = 0; k < KT; ++k) out[k] = (T(1) - f) * a[k] + f * b[k];
  }
}

// Four classes side by side: one 16-byte access of shared memory in fp32.
template <typename T>
struct alignas(16) Quad {
  T v[4];
};
template <typename T>
__device__ __forceinline__ const Quad<T>& quad(const T* p) {
  return *reinterpret_cast<const Quad<T>*>(p);
}
template <typename T>
__device__ __forceinline__ Quad<T>& quad(T* p) {
  return *reinterpret_cast<Quad<T>*>(p);
}

// Shared memory of a block. Classes run fastest, and strides are odd multiples of 4, so that the eight threads of a
// 16-byte access use different banks: KT is one too, and so is (ratio + skew) fold_stride.
template <typename T>
struct Smem {
  const LaunchConfig& config;

  __device__ __forceinline__ T* at(int offset) const { return shared_memory<T>() + offset; }
  // [staged, stride] one row of logits
  __device__ __forceinline__ T* cells() const { return at(0); }
  // [slots, stride] gradient by label column
  __device__ __forceinline__ T* fold() const { return at(config.fold_at); }
  // [staged] of the first column of each interval
  __device__ __forceinline__ T* fraction() const { return at(config.fraction_at); }
  // [2, tile_y, span] partial sums of cells that a later chunk completes, by parity of the cell
  __device__ __forceinline__ T* edge() const { return at(config.edge_at); }
  // [2, span] partial sums of the row being folded, from the chunk before
  __device__ __forceinline__ T* carry() const { return at(config.carry_at); }
  // [staged + 1] first column of each interval, within the chunk
  __device__ __forceinline__ int* start() const { return reinterpret_cast<int*>(at(config.start_at)); }
};

// Columns of each interval in this chunk.
template <typename T>
__device__ __forceinline__ void tabulate(const Smem<T>& smem, const LaunchConfig& config, const Axis& axis,
                                         const Chunk& chunk) {
  for (int i = threadIdx.x; i <= config.staged; i += blockDim.x) {
    const int64_t cell = chunk.cell0 + i;
    const int64_t x = max(min(axis.first(cell), static_cast<int64_t>(chunk.x1)), static_cast<int64_t>(chunk.x0));
    smem.start()[i] = static_cast<int>(x) - chunk.x0;
    if (i < config.staged && x < chunk.x1) {
      smem.fraction()[i] = static_cast<T>(axis.mul * x + axis.add - cell * axis.den) / static_cast<T>(axis.den);
    }
  }
}

// Logit of classes past the last: -inf, which changes neither maxima nor sums, or a finite substitute if a factor may
// be 0.
template <typename T, typename Params>
__device__ __forceinline__ T padding(const Params& p) {
  return p.x.identity() && p.y.identity() ? -std::numeric_limits<T>::infinity() : T(-1e38);
}

template <typename T, typename Params>
__device__ __forceinline__ void pad_cells(const Smem<T>& smem, const Params& p, const LaunchConfig& config,
                                          const Tile& tile) {
  const int classes = min(p.classes - tile.class0, config.span);
  const T past = padding<T>(p);
  block_sweep(config.span - classes, config.staged, true,
              [&](int k, int c) { smem.cells()[c * config.stride + classes + k] = past; });
}

// cells[c, k] = logits of cell row y
template <typename T, typename Params>
__device__ __forceinline__ void stage_cells(const Smem<T>& smem, const Params& p, const LaunchConfig& config,
                                            const Tile& tile, const Chunk& chunk, int64_t y) {
  const int64_t origin = p.input.offset(tile.image, tile.class0, y, chunk.cell0);
  const int classes = min(p.classes - tile.class0, config.span);
  const int64_t k = p.input.k, x = p.input.x;
  const bool classes_fast = k < x;
  with_storage<T>(p.input, [&](auto* input) {
    using From = std::remove_pointer_t<decltype(input)>;
    block_copy<kThreads, 4, From, T>(
        classes_fast ? classes : chunk.cells, classes_fast ? chunk.cells : classes,
        {input + origin, classes_fast ? k : x, classes_fast ? x : k},
        {smem.cells(), classes_fast ? 1 : config.stride, classes_fast ? config.stride : 1});
  });
}

template <typename T, int KT>
__device__ __forceinline__ void read_row(const Smem<T>& smem, const LaunchConfig& config, const Axis& axis,
                                         const Fragment<T>& fragment, T (&z)[KT]) {
  const T* left = smem.cells() + fragment.left * config.stride + fragment.local;
  const T* right = smem.cells() + fragment.right * config.stride + fragment.local;
#pragma unroll
  for (int k = 0; k < KT; k += 4) {
    const Quad<T> a = quad(left + k), b = quad(right + k);
#pragma unroll
    for (int q = 0; q < 4; ++q) z[k + q] = blend(axis, a.v[q], b.v[q], fragment.fx);
  }
}

template <typename T, int KT>
__device__ __forceinline__ void stage_gradient(const Smem<T>& smem, const LaunchConfig& config, const Chunk& chunk,
                                               const Fragment<T>& fragment, int row, const T (&g)[KT]) {
  if (fragment.active) {
    T* column = smem.fold() + fragment.slot * config.stride + fragment.local;
#pragma unroll
    for (int k = 0; k < KT; k += 4) quad(column + k) = {g[k], g[k + 1], g[k + 2], g[k + 3]};
  }
  if (!chunk.continues) return;
  for (int k = 4 * threadIdx.x; k < 2 * config.span; k += 4 * blockDim.x) {
    const int parity = k >= config.span;
    quad(smem.carry() + k) =
        quad(smem.edge() + row * config.span + (parity ? (config.tile_y - 1) * config.span : 0) + k);
  }
}

// grad[c] = sum over the columns x of interval c of (1 - f_x) g_x, plus over those of interval c - 1 of f_x g_x
template <typename T, typename Params>
__device__ __forceinline__ void fold_row(const Smem<T>& smem, const Params& p, const LaunchConfig& config,
                                         const Tile& tile, const Chunk& chunk, int row) {
  const int stop = min(tile.x1, chunk.complete + 2);
  const int64_t origin = p.grad.offset(tile.image, tile.class0, tile.y0 + row, 0);
  const T step = static_cast<T>(p.x.mul) / static_cast<T>(p.x.den);
  const auto fold_cell = [&](int c, int k0) {
    Quad<T> sum{};
    const auto add_interval = [&](int cell, bool from_left) {
      const int i = cell - chunk.cell0;
      if (i < 0 || i >= chunk.cells) return;
      const int first = smem.start()[i], count = smem.start()[i + 1] - first;
      const T* column = smem.fold() + (first + config.skew * i) * config.stride + k0;
      for (int j = 0; j < count; ++j, column += config.stride) {
        const T f = cell + 1 == p.x.cells ? T(0) : fmax(smem.fraction()[i] + j * step, T(0));
        const T share = from_left ? f : T(1) - f;
        if (share <= T(0)) continue;
        const Quad<T> g = quad(column);
#pragma unroll
        for (int q = 0; q < 4; ++q) sum.v[q] += share * g.v[q];
      }
    };
    if (!p.x.identity()) add_interval(c - 1, true);
    add_interval(c, false);
    if (chunk.continues && c - chunk.done < 2) {
      const Quad<T> before = quad(smem.carry() + (c & 1) * config.span + k0);
#pragma unroll
      for (int q = 0; q < 4; ++q) sum.v[q] += before.v[q];
    }
    return sum;
  };
  block_sweep(config.span / 4, stop - chunk.done, p.grad.k < p.grad.x, [&](int quad_index, int i) {
    const int c = chunk.done + i, k0 = 4 * quad_index;
    const Quad<T> sum = fold_cell(c, k0);
    if (c >= chunk.complete) {
      quad(smem.edge() + ((c & 1) * config.tile_y + row) * config.span + k0) = sum;
      return;
    }
    const int64_t at = origin + k0 * p.grad.k + c * p.grad.x;
    const int classes = p.classes - tile.class0 - k0;
    with_storage<T>(p.grad, [&](auto* grad) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        if (q < classes) narrow(sum.v[q], grad[at + q * p.grad.k]);
      }
    });
  });
}

// If label columns are cells and contiguous in memory, threads read and write them without shared memory.
template <typename T, int KT, typename Params>
__device__ __forceinline__ void load_row(const Params& p, const Tile& tile, const Fragment<T>& fragment, int64_t y,
                                         T (&z)[KT]) {
  const int classes = p.classes - fragment.class0;
  const int64_t at = p.input.offset(tile.image, min(fragment.class0, p.classes - 1), y, fragment.x);
  const T past = padding<T>(p);
  with_storage<T>(p.input, [&](auto* input) {
    std::remove_pointer_t<decltype(input)> values[KT];
    input += at;
#pragma unroll
    for (int k = 0; k < KT; ++k) {  // without conditions, so that the loads are independent
      values[k] = *input;
      input += k + 1 < classes ? p.input.k : 0;
    }
#pragma unroll
    for (int k = 0; k < KT; ++k) z[k] = k < classes ? widen<T>(values[k]) : past;
  });
}

template <typename T, int KT, typename Params>
__device__ __forceinline__ void store_row(const Params& p, const Tile& tile, const Fragment<T>& fragment, int64_t y,
                                          const T (&g)[KT]) {
  const int classes = fragment.active ? p.classes - fragment.class0 : 0;
  const int64_t at = p.grad.offset(tile.image, fragment.class0, y, fragment.x);
  with_storage<T>(p.grad, [&](auto* grad) {
    grad += at;
#pragma unroll
    for (int k = 0; k < KT; ++k, grad += p.grad.k) {
      if (k < classes) narrow(g[k], *grad);
    }
  });
}

// One chunk of columns, from the top of the tile to its bottom. Grad: a gradient may be wanted.
template <typename T, int KT, bool Grad, typename Params, typename Form>
__device__ __forceinline__ void walk_rows(const Smem<T>& smem, const Params& p, const LaunchConfig& config,
                                          const Tile& tile, const Chunk& chunk, const Fragment<T>& fragment,
                                          Form& form) {
  T z0[KT], z1[KT] = {}, g0[KT], g1[KT] = {};
  const bool grad = Grad && p.grad;
  const int top = max(tile.y0 - config.halo_y, 0);
  int y = static_cast<int>(p.y.first(top));
  const int y_end = chunk.x0 < chunk.x1 ? static_cast<int>(p.y.first(tile.y1)) : y;
  RowStepper<T> at(p.y, y);
  int label = form.fetch(fragment, y, y_end);
  // Each iteration loads cell row `cell + 1`, stores row `cell - 1`, and walks the interval between `cell` and
  // `cell + 1`. The first only loads row `top`, the last only stores.
  for (int cell = top - 1; cell <= tile.y1; ++cell) {
    const int finished = cell - 1 - tile.y0;
    const int64_t entering = cell < top ? top : p.y.next(cell);
    if (config.direct) {
      if (grad && finished >= 0) store_row(p, tile, fragment, tile.y0 + finished, g0);
    } else {
      __syncthreads();
      if (cell < tile.y1) stage_cells(smem, p, config, tile, chunk, entering);
      if (grad && finished >= 0) stage_gradient(smem, config, chunk, fragment, finished, g0);
      __syncthreads();
      if (grad && finished >= 0) fold_row(smem, p, config, tile, chunk, finished);
    }
#pragma unroll
    for (int k = 0; k < KT; ++k) {
      z0[k] = z1[k];
      g0[k] = g1[k];
      g1[k] = T(0);
    }
    if (!config.direct) {
      read_row(smem, config, p.x, fragment, z1);
    } else if (cell < tile.y1) {
      load_row(p, tile, fragment, entering, z1);
    }
    if (cell + 1 >= p.y.cells) {  // weighed by 0, which would make NaN of an infinity
#pragma unroll
      for (int k = 0; k < KT; ++k) z1[k] = T(0);
    }
    for (; y < y_end && at.cell == cell; ++y, at.step(p.y)) {
      const int ahead = form.fetch(fragment, y + 1, y_end);  // the load returns while this row is worked on
      const LabelRow<T> row{tile.image, y, label, fragment.owned && cell >= tile.y0, at.fraction(p.y)};
      form.row(config.groups, fragment, row, z0, z1, g0, g1);
      label = ahead;
    }
  }
}

// The tile of this block, chunk by chunk of its columns. The first barrier also publishes what the form has put into
// shared memory.
template <typename T, int KT, bool Grad, typename Params, typename Form>
__device__ __forceinline__ void walk_tile(const Params& p, const LaunchConfig& config, Form& form) {
  __shared__ Tile tile;
  __shared__ Chunk chunk;
  const Smem<T> smem{config};
  if (threadIdx.x == 0) {
    tile = tile_at(config, p.y, p.x, blockIdx.x);
    chunk = first_chunk(config, p.x, tile);
  }
  __syncthreads();
  if (!config.direct) pad_cells(smem, p, config, tile);
  for (;;) {
    const Fragment<T> fragment = fragment_at<T>(p, config, tile, chunk);
    if (Grad && p.grad && !config.direct) tabulate(smem, config, p.x, chunk);
    walk_rows<T, KT, Grad>(smem, p, config, tile, chunk, fragment, form);
    __syncthreads();
    if (chunk.x1 == chunk.x_end) break;
    __syncthreads();
    if (threadIdx.x == 0) chunk = next_chunk(config, p.x, tile, chunk);
    __syncthreads();
  }
}

}  // namespace metricseg::resized
