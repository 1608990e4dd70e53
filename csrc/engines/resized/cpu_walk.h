// The walk over label pixels, for losses with a gradient. A worker owns consecutive rows of logits. Label rows between
// two of them are processed in blocks of up to 16 vectors of pixels, whose K logits stay in cache through three steps:
//   blend   two logit rows -> K interpolated logits per pixel, and their maximum
//   loss    of the family: logits in; out, if there is a gradient to write, what times `factor` is the gradient
//   fold    the transpose of blend: four weights per pixel, into two rows of gradient that the worker holds
// The interval above the first row of a worker is computed for its gradient only, so each row has one owner and one
// order of summation. Of a volume a worker owns planes, and walks over each slice of labels as over an image, whose rows
// of logits lie between two planes. Memory traffic and derivation: docs/kernels/focal.md.
#pragma once

#include "cpu_blend.h"
#include "cpu_pixels.h"

namespace metricseg::resized {
namespace METRICSEG_SIMD {

// What a family does with a block: a call of its own, so that the walk is compiled once for all families.
template <typename T>
struct BlockLoss {
  T *const max, *const factor;  // [P, N] the walk fills max, and reads factor

  // before and after the blocks of a unit of work; those of another one, for their share of the gradient alone, come
  // before begin
  virtual void begin(int64_t /* unit */) {}
  virtual void end(int64_t /* unit */) {}
  virtual void run(const Block& block, T* z /* [K, P, N] */) = 0;

 protected:
  BlockLoss(T* max, T* factor) : max(max), factor(factor) {}
};

template <typename T>
class Interpolated {
  using V = Lanes<T>;
  static constexpr int N = V::count;

  const Maps& maps;
  const Slots<T>& slots;
  BlockLoss<T>& loss;
  const int64_t K, stride;
  T *top, *bottom;            // rows y and y + 1 of the logits, [K, stride], cell c at c + kMaxLanes
  T *grad_top, *grad_bottom;  // their gradient
  T* z;                       // [K, P, N]
  // of a volume
  T* next_plane_row;             // [w]
  T *grad_plane, *grad_next;     // [h, K, w] gradients of planes c and c + 1
  int64_t slice = 0, plane = 0;  // label and cell in work
  T next_share = T(0);           // of plane c + 1 in the slice

 public:
  Interpolated(const Maps& maps, const Slots<T>& slots, BlockLoss<T>& loss, T* scratch)
      : maps(maps),
        slots(slots),
        loss(loss),
        K(maps.classes),
        stride(row_stride(maps)),
        top(scratch),
        bottom(top + K * stride),
        grad_top(bottom + K * stride),
        grad_bottom(grad_top + K * stride),
        z(grad_bottom + K * stride),
        next_plane_row(z + K * block_pixels(maps)),
        grad_plane(next_plane_row + stride),
        grad_next(grad_plane + plane_values(maps)) {}

  // Rows [begin, end) of the batch's B h rows, or planes of its B d planes.
  void run(int64_t begin, int64_t end) {
    if (!maps.flat()) return run_planes(begin, end);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / maps.y.cells, y = unit % maps.y.cells;
      if (unit == begin || y == 0) start(image, y);
      loss.begin(unit);
      interval(image, y, true);
      loss.end(unit);
      if (maps.grad) flush(image, y);
      advance();
    }
  }

 private:
  // Brings a worker to row y: logits loaded, and the share of the gradient that comes from the interval above.
  void start(int64_t image, int64_t y) {
    clear(grad_top);
    clear(grad_bottom);
    if (maps.grad && y > 0 && !maps.y.identity()) {
      load(image, y - 1, top);
      interval(image, y - 1, false);
      clear(grad_top);
      advance();
    } else {
      load(image, y, top);
    }
  }

  void advance() {
    T* const row = top;
    top = bottom;
    bottom = row;
    T* const grad = grad_top;
    grad_top = grad_bottom;
    grad_bottom = grad;
  }

  void run_planes(int64_t begin, int64_t end) {
    const int64_t depth = maps.z.cells;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t image = unit / depth;
      plane = unit % depth;
      if (unit == begin || plane == 0) start_plane(image);
      loss.begin(unit);
      slices(image, true);
      loss.end(unit);
      if (holds_planes()) flush_plane(image);
    }
  }

  bool holds_planes() const { return maps.grad && !maps.z.identity(); }

  // As `start`, of planes.
  void start_plane(int64_t image) {
    if (!holds_planes()) return;
    clear_plane(grad_plane);
    clear_plane(grad_next);
    if (plane == 0) return;
    --plane;
    slices(image, false);
    ++plane;
    next_plane();
  }

  // The slices of labels between planes c and c + 1.
  void slices(int64_t image, bool record) {
    const int64_t last = maps.z.first(plane + 1);
    for (slice = maps.z.first(plane); slice < last; ++slice) {
      next_share = maps.z.identity() || plane + 1 == maps.z.cells ? T(0) : maps.z.template fraction<T>(slice);
      start(image, 0);
      for (int64_t y = 0; y < maps.y.cells; ++y) {
        interval(image, y, record);
        if (maps.grad) flush(image, y);
        advance();
      }
    }
  }

  void flush_plane(int64_t image) {
    const Map grad = maps.grad.plane(plane);
    const T* row = grad_plane;
    for (int64_t y = 0; y < maps.y.cells; ++y) {
      for (int64_t k = 0; k < K; ++k, row += maps.x.cells) write(grad, row, maps.x.cells, grad.at(image, k, y, 0));
    }
    next_plane();
  }

  void next_plane() {
    T* const done = grad_plane;
    grad_plane = grad_next;
    grad_next = done;
    clear_plane(grad_next);
  }

  void clear_plane(T* values) const { std::memset(values, 0, sizeof(T) * plane_values(maps)); }

  void clear(T* row) const { std::memset(row, 0, sizeof(T) * K * stride); }

  void load(int64_t image, int64_t y, T* row) const {
    const Map here = maps.input.plane(plane), next = maps.input.plane(plane + 1);
    const int64_t n = maps.x.cells;
    for (int64_t k = 0; k < K; ++k) {
      T* cells = row + k * stride;
      std::memset(cells, 0, sizeof(T) * stride);  // beyond the last cell too, which is blended with its neighbor
      cells += kMaxLanes;
      read(here.type, here.at(image, k, y, 0), here.x, n, cells);
      if (next_share == T(0)) continue;
      read(next.type, next.at(image, k, y, 0), next.x, n, next_plane_row);
      for (int64_t i = 0; i < n; ++i) cells[i] = mix(cells[i], next_plane_row[i], next_share);
    }
  }

  // Writes the gradient of row y, or adds it to those of the planes, and clears it for its next use.
  void flush(int64_t image, int64_t y) {
    const Map grad = maps.grad.plane(plane);
    const int64_t n = maps.x.cells;
    for (int64_t k = 0; k < K; ++k) {
      const T* const row = grad_top + k * stride + kMaxLanes;
      if (holds_planes()) {
        const int64_t at = (y * K + k) * n;
        for (int64_t i = 0; i < n; ++i) {
          grad_plane[at + i] += (T(1) - next_share) * row[i];
          grad_next[at + i] += next_share * row[i];
        }
      } else {
        write(grad, row, n, grad.at(image, k, y, 0));
      }
    }
    clear(grad_top);
  }

  // The label rows between logit rows y and y + 1. A call: it is long, and used in three places.
  __attribute__((noinline)) void interval(int64_t image, int64_t y, bool record) {
    const bool blend_rows = !maps.y.identity() && y + 1 < maps.y.cells;
    if (y + 1 < maps.y.cells) load(image, y + 1, bottom);
    const int64_t last = maps.y.first(y + 1);
    for (int64_t row = maps.y.first(y); row < last;) {
      // 5 rows are 3 + 2, not 4 + 1
      const int64_t left = last - row, chunks = (left + kMaxRows - 1) / kMaxRows;
      const int rows = static_cast<int>((left + chunks - 1) / chunks);
      switch (rows) {
        case 1:
          label_rows<1>(image, row, blend_rows, record);
          break;
        case 2:
          label_rows<2>(image, row, blend_rows, record);
          break;
        case 3:
          label_rows<3>(image, row, blend_rows, record);
          break;
        default:
          label_rows<4>(image, row, blend_rows, record);
      }
      row += rows;
    }
  }

  template <int R>
  void label_rows(int64_t image, int64_t row, bool blend_rows, bool record) {
    static_assert(R <= kMaxRows);
    T lower[R];  // weight of row y + 1
    for (int r = 0; r < R; ++r) lower[r] = blend_rows ? maps.y.template fraction<T>(row + r) : T(0);
    const int64_t group = block_vectors(maps) / R;
    for (int64_t slot = 0; slot < slots.count; slot += group) {
      const int64_t end = slot + group < slots.count ? slot + group : slots.count;
      Block block;
      block.vectors = static_cast<int>(end - slot) * R;
      block.record = record;
      block.image = image;
      block.z = slice;
      block.x0 = 0;
      for (int64_t s = slot; s < end; ++s) {
        for (int r = 0; r < R; ++r) {
          block.y[(s - slot) * R + r] = row + r;
          block.x[(s - slot) * R + r] = slots.x + s * N;
        }
      }
      for (int64_t s = slot; s < end; ++s) {
        const SlotColumn<T> column(slots, s);
        const int64_t cell = kMaxLanes + column.first, at = (s - slot) * R * N;
        blend<R>(column, top + cell, bottom + cell, K, stride, blend_rows, lower, block.vectors, z + at, loss.max + at);
      }
      loss.run(block, z);
      if (maps.grad) fold<R>(slot, end, blend_rows, lower, block.vectors);
    }
  }

  // Adds the gradient of slots [begin, end) in R label rows to the two rows of cells.
  template <int R>
  void fold(int64_t begin, int64_t end, bool blend_rows, const T* lower, int P) {
    for (int64_t slot = begin; slot < end;) {
      int64_t next = slot + 1;
      while (next < end && slots.column[next] == slots.column[slot]) ++next;
      fold_cells<R>(slot, next, blend_rows, lower, P, (slot - begin) * R * N);
      slot = next;
    }
  }

  // The slots of one vector of cells; offset: of their first pixel.
  template <int R>
  void fold_cells(int64_t begin, int64_t end, bool blend_rows, const T* lower, int P, int64_t offset) {
    const V zero(T(0)), one(T(1));
    V under[R], over[R];
    for (int r = 0; r < R; ++r) {
      under[r] = V(lower[r]);
      over[r] = V(T(1) - lower[r]);
    }
    const int64_t cell = kMaxLanes + slots.column[begin];
    for (int64_t k = 0; k < K; ++k) {
      const T* g = z + k * P * N + offset;
      const T* factor = loss.factor + offset;
      Cells upper, lower_cells;
      for (int64_t slot = begin; slot < end; ++slot) {
        V up = zero, down = zero;
        for (int r = 0; r < R; ++r, g += N, factor += N) {
          const V value = V::load(g) * V::load(factor);
          up = up + over[r] * value;
          down = down + under[r] * value;
        }
        const V side = V::load(slots.neighbor + slot * N);
        const Mask<T> right = V::load(slots.right + slot * N) > zero;
        upper.add(up, side, one - side, right);
        lower_cells.add(down, side, one - side, right);
      }
      upper.add_to(grad_top + k * stride + cell);
      if (blend_rows) lower_cells.add_to(grad_bottom + k * stride + cell);
    }
  }

  // Gradient of N cells, and the shares of their left-hand and right-hand neighbors.
  struct Cells {
    V center, left, right;

    METRICSEG_HD Cells() : center(T(0)), left(T(0)), right(T(0)) {}

    METRICSEG_HD void add(V value, V side, V rest, Mask<T> to_right) {
      const V zero(T(0)), share = side * value;
      center = center + rest * value;
      left = left + select(to_right, zero, share);
      right = right + select(to_right, share, zero);
    }

    METRICSEG_HD void add_to(T* cells) const {
      cells[-1] += left.first();
      (V::load(cells) + ((center + shift<1>(left)) + shift<-1>(right))).store(cells);
      cells[N] += right.last();
    }
  };
};

// Labels at the size of the logits, see `direct`: a tile is a run of pixels of one row.
template <typename T>
class Direct {
  using V = Lanes<T>;
  static constexpr int N = V::count;

  const Maps& maps;
  BlockLoss<T>& loss;
  T* z;  // [K, P, N]
  int32_t columns[kMaxVectors * kMaxLanes];

 public:
  Direct(const Maps& maps, BlockLoss<T>& loss, T* scratch) : maps(maps), loss(loss), z(scratch) {}

  void run(int64_t begin, int64_t end) {
    const int64_t size = int64_t{block_vectors(maps)} * N, tiles = (maps.x.cells + size - 1) / size;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / tiles, x0 = unit % tiles * size;
      const int64_t n = maps.x.cells - x0 < size ? maps.x.cells - x0 : size;
      loss.begin(unit);
      tile(row / maps.y.cells, row % maps.y.cells, x0, n);
      loss.end(unit);
    }
  }

 private:
  void tile(int64_t image, int64_t y, int64_t x0, int64_t n) {
    Block block;
    block.vectors = static_cast<int>((n + N - 1) / N);
    block.record = true;
    block.image = image;
    block.z = 0;
    block.x0 = x0;
    const int64_t padded = int64_t{block.vectors} * N;
    for (int64_t i = 0; i < padded; ++i) columns[i] = i < n ? static_cast<int32_t>(i) : -1;
    for (int p = 0; p < block.vectors; ++p) {
      block.y[p] = y;
      block.x[p] = columns + p * N;
    }
    for (int64_t k = 0; k < maps.classes; ++k) {
      read(maps.input.type, maps.input.at(image, k, y, x0), maps.input.x, n, z + k * padded);
      for (int64_t i = n; i < padded; ++i) z[k * padded + i] = T(0);
    }
    maxima(block.vectors);
    loss.run(block, z);
    if (maps.grad) write_gradient(image, y, x0, n, padded);
  }

  void maxima(int P) const {
    for (int p = 0; p < P; ++p) {
      V m(-std::numeric_limits<T>::infinity());
      for (int64_t k = 0; k < maps.classes; ++k) m = max(V::load(z + (k * P + p) * N), m);
      m.store(loss.max + p * N);
    }
  }

  void write_gradient(int64_t image, int64_t y, int64_t x0, int64_t n, int64_t padded) {
    const T* const factor = loss.factor;  // read once: for all the compiler knows, g is where it stands
    for (int64_t k = 0; k < maps.classes; ++k) {
      T* g = z + k * padded;
      for (int64_t i = 0; i < padded; i += N) (V::load(g + i) * V::load(factor + i)).store(g + i);
      write(maps.grad, g, n, maps.grad.at(image, k, y, x0));
    }
  }
};

// Units [begin, end) of a call, on one thread.
template <typename T>
inline void walk(const Maps& maps, const Slots<T>& slots, int64_t begin, int64_t end, T* scratch, BlockLoss<T>& loss) {
  if (direct(maps)) {
    Direct<T>(maps, loss, scratch).run(begin, end);
  } else {
    Interpolated<T>(maps, slots, loss, scratch).run(begin, end);
  }
}

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::resized
