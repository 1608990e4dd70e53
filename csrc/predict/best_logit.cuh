// The largest logit of a single map. `pruned_kernel` asks first which classes can win between four cells: few, where a
// network has learned something. `best_logit_kernel` takes all classes of each label: for maps of about the labels' size,
// or of very many classes. Derivation: docs/kernels/predict.md.
#pragma once

#include "cells.cuh"

namespace metricseg::predict {

// A thread for each label column, a tile for 128 columns of a row.
template <typename T>
__global__ void __launch_bounds__(kThreads) best_logit_kernel(CudaParams p, Tiles tiles) {
  const MapSource& source = p.sources[0];
  Sink sink(p, shared_counts(tiles));
  for (int64_t tile = blockIdx.x; tile < tiles.all; tile += gridDim.x) {
    const Place place = place_of(tiles, tile);
    const int64_t x = place.column * kThreads + threadIdx.x;
    const bool inside = x < p.width;
    const Between<T> column = column_of<T>(p, 0, inside ? x : p.width - 1), row = between<T>(p.y(0), place.row);
    Best<T> best;
    with_storage<T>(source.map, [&](auto* data) {
      const auto* at = data + source.map.offset(place.image, 0, row.cell, column.cell);
      const int64_t down = row.step * source.map.y, right = column.step * source.map.x, k_step = source.map.k;
#pragma unroll 4
      for (int k = 0; k < p.classes; ++k, at += k_step) {
        const T top = mix(widen<T>(at[0]), widen<T>(at[right]), column.share);
        const T bottom = mix(widen<T>(at[down]), widen<T>(at[down + right]), column.share);
        best.take(mix(top, bottom, row.share), k);
      }
    });
    sink.take(place.image, place.row, x, inside, best.at);
  }
  sink.finish();
}

// Between the centers of four neighboring cells lie the labels of a field. Field c of an axis begins at label first(c); the
// first one also has the labels before the first center, and the last one those after the last.
struct Fields {
  Axis axis;

  METRICSEG_HD int64_t count() const { return axis.cells > 1 ? axis.cells - 1 : 1; }
  METRICSEG_HD int64_t begin(int64_t field) const { return field < count() ? axis.first(field) : axis.labels; }
};

constexpr int kAcross = kWarp;                        // fields of a tile, side by side, one to a lane
constexpr int kFieldRows = 2;                         // of a warp
constexpr int kDown = kFieldRows * kThreads / kWarp;  // rows of fields of a tile
constexpr int kTileFields = kAcross * kDown;
constexpr int kBits = 32;  // classes of a word

// What the four logits of a class allow for its values in a field: these are averages of the four, up to rounding.
// A NaN or an infinity among them makes `highest` NaN or an infinity, and takes no part in `lowest`.
template <typename T>
struct Range {
  T lowest, highest, size;  // size: sum of absolute values

  __device__ __forceinline__ static Range of(T a, T b) { return {fmin(a, b), fmax(a, b), fabs(a) + fabs(b)}; }
  __device__ __forceinline__ Range with(const Range& other) const {
    return {fmin(lowest, other.lowest), fmax(highest, other.highest), size + other.size};
  }

  static constexpr T kRounding = 8 * std::numeric_limits<T>::epsilon();
  __device__ __forceinline__ T below() const { return lowest - kRounding * size; }
  // Also for NaN, which is larger than all.
  __device__ __forceinline__ bool can_reach(T bound) const { return !(highest + kRounding * size < bound); }
};

// The two rows of fields of a lane, one above the other: three rows of cells.
template <typename Stored>
struct Corners {
  const Stored* data;  // class 0, upper left
  int64_t right, down[kFieldRows + 1], k;

  __device__ __forceinline__ void load(int64_t at, Stored (&values)[kFieldRows + 1][2]) const {
#pragma unroll
    for (int i = 0; i <= kFieldRows; ++i) {
      const Stored* const left = data + down[i] + at;
      values[i][0] = left[0];
      values[i][1] = left[right];
    }
  }

  // Of class k in field i.
  template <typename T>
  __device__ __forceinline__ Range<T> field(const Stored (&values)[kFieldRows + 1][2], int i) const {
    const auto row = [&](int j) { return Range<T>::of(widen<T>(values[j][0]), widen<T>(values[j][1])); };
    return row(i).with(row(i + 1));
  }
};

// A class that is the largest at a cell, if there is no NaN.
template <typename T, typename Stored>
__device__ __forceinline__ int largest_at(const Stored* cell, int64_t k_step, int classes) {
  T best = widen<T>(cell[0]);
  int at = 0;
#pragma unroll 8
  for (int k = 1; k < classes; ++k) {
    const T value = widen<T>(cell[k * k_step]);
    at = value > best ? k : at;
    best = fmax(best, value);
  }
  return at;
}

// The classes that can win in each field: bits of masks [words, kTileFields] in shared memory; only [kTileFields] is the
// class if there is but one, else -1.
template <typename T, typename Stored>
__device__ __forceinline__ void prune(const Corners<Stored>& cells, int classes, int slot, unsigned* masks, int* only) {
  constexpr int N = kFieldRows, kBatch = 16 / sizeof(Stored);  // classes whose loads are under way together
  // The largest of the least values of a class: first of one that probably is the largest, so that few classes which
  // come before that of the final bound are taken for possible.
  T bound[N];
  const int guess = largest_at<T>(cells.data + cells.down[1], cells.k, classes);
  {
    Stored values[N + 1][2];
    cells.load(guess * cells.k, values);
#pragma unroll
    for (int i = 0; i < N; ++i)
      bound[i] = fmax(-std::numeric_limits<T>::infinity(), cells.template field<T>(values, i).below());
  }
  const int words = (classes + kBits - 1) / kBits;
  for (int word = 0; word < words; ++word) {
    unsigned bits[N] = {};
    const int count = min(kBits, classes - word * kBits);
    for (int j0 = 0; j0 < count; j0 += kBatch) {
      Stored values[kBatch][N + 1][2];
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {  // the last class may come again
        cells.load(min(word * kBits + j0 + j, classes - 1) * cells.k, values[j]);
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const Range<T> field = cells.template field<T>(values[j], i);
          bound[i] = fmax(bound[i], field.below());
          if (field.can_reach(bound[i])) bits[i] |= 1u << (j0 + j);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      masks[word * kTileFields + slot + i * kAcross] = bits[i] & (kFullMask >> (kBits - count));
    }
  }
  // with the final bound
#pragma unroll
  for (int i = 0; i < N; ++i) {
    int found = 0, last = -1;
    for (int word = 0; word < words; ++word) {
      unsigned &mask = masks[word * kTileFields + slot + i * kAcross], kept = mask;
      for (unsigned left = mask; left != 0; left &= left - 1) {
        const int j = __ffs(static_cast<int>(left)) - 1, k = word * kBits + j;
        Stored values[N + 1][2];
        cells.load(k * cells.k, values);
        const Range<T> field = cells.template field<T>(values, i);
        if (field.can_reach(bound[i])) {
          ++found;
          last = k;
        } else {
          kept &= ~(1u << j);
        }
      }
      mask = kept;
    }
    only[slot + i * kAcross] = found == 1 ? last : -1;
  }
}

// The best classes of up to R label rows of a column in a field; shares: of the lower row of cells.
template <typename T, int R, typename Stored>
__device__ __forceinline__ void best_of_masked(const Stored* cells, int64_t down, int64_t right, int64_t k_step,
                                               T x_share, const T (&shares)[R], const unsigned* mask, int words,
                                               int (&at)[R]) {
  Best<T> best[R];
  for (int word = 0; word < words; ++word) {
    for (unsigned left = mask[word * kTileFields]; left != 0;) {
      // two classes at a time, whose loads wait for each other no longer than one's; the last may come twice
      int k[2];
      T top[2], bottom[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        k[i] = left == 0 ? k[0] : word * kBits + __ffs(static_cast<int>(left)) - 1;
        left &= left - 1;
        const Stored* const cell = cells + k[i] * k_step;
        top[i] = mix(widen<T>(cell[0]), widen<T>(cell[right]), x_share);
        bottom[i] = mix(widen<T>(cell[down]), widen<T>(cell[down + right]), x_share);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const T value = mix(top[i], bottom[i], shares[r]);
          best[r].take(shares[r] <= T(0) ? top[i] : shares[r] >= T(1) ? bottom[i] : value, k[i]);
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) at[r] = best[r].at;
}

// The cells of every 32nd label column, without a division for each.
template <typename T>
class Columns {
  int64_t cell_, rest_, cells_step_, rest_step_;  // rest: of the numerator, below the denominator
  T unit_;

 public:
  __device__ __forceinline__ Columns(const Axis& axis, int64_t label)
      : cells_step_(kWarp * axis.mul / axis.den),
        rest_step_(kWarp * axis.mul - cells_step_ * axis.den),
        unit_(T(1) / static_cast<T>(axis.den)) {
    const int64_t n = axis.mul * label + axis.add;  // above -den
    cell_ = n < 0 ? -1 : n / axis.den;
    rest_ = n - cell_ * axis.den;
  }

  __device__ __forceinline__ void advance(const Axis& axis) {
    const bool wraps = rest_ + rest_step_ >= axis.den;
    cell_ += cells_step_ + wraps;
    rest_ += rest_step_ - (wraps ? axis.den : 0);
  }

  // See predict::between.
  __device__ __forceinline__ Between<T> between(const Axis& axis) const {
    const bool alone = cell_ < 0 || rest_ == 0 || cell_ >= axis.cells - 1;
    const int64_t cell = min(max(cell_, int64_t(0)), axis.cells - 1);
    return {cell, alone ? 0 : 1, alone ? T(0.5) : static_cast<T>(rest_) * unit_};
  }
};

// A warp prunes two rows of fields, a field of each to a lane, and then takes their labels, a column to a lane.
template <typename T, int R>
__global__ void __launch_bounds__(kThreads, 4) pruned_kernel(CudaParams p, Tiles tiles) {
  const MapSource& source = p.sources[0];
  const Fields fields_y{p.y(0)}, fields_x{p.x(0)};
  const int words = (p.classes + kBits - 1) / kBits, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int* const only = shared_memory<int>();                                                   // [kTileFields]
  unsigned* const masks = reinterpret_cast<unsigned*>(shared_memory<int>() + kTileFields);  // [words, kTileFields]
  const int slot = warp * kFieldRows * kAcross;
  const T unit = T(1) / static_cast<T>(fields_y.axis.den);
  Sink sink(p, shared_counts(tiles));
  for (int64_t tile = blockIdx.x; tile < tiles.all; tile += gridDim.x) {
    const Place place = place_of(tiles, tile);
    const int64_t row = place.row * kDown + warp * kFieldRows, column = place.column * kAcross;
    if (row >= fields_y.count()) continue;
    const Axis &ya = fields_y.axis, &xa = fields_x.axis;
    const int64_t x_begin = fields_x.begin(column), x_end = fields_x.begin(column + kAcross);
    const int64_t last_field = min(column + kAcross, fields_x.count()) - 1;
    with_storage<T>(source.map, [&](auto* stored) {
      using Stored = std::remove_pointer_t<decltype(stored)>;
      const Stored* const image = stored + place.image * source.map.b;
      __syncwarp();  // the masks of the tile before have been read
      {
        const int64_t x = min(column + lane, fields_x.count() - 1);
        Corners<Stored> cells{
            image + row * source.map.y + x * source.map.x, (xa.next(x) - x) * source.map.x, {}, source.map.k};
#pragma unroll
        for (int i = 0; i <= kFieldRows; ++i) {
          cells.down[i] = (min(row + i, ya.cells - 1) - row) * source.map.y;
        }
        prune<T>(cells, p.classes, slot + lane, masks, only);
      }
      __syncwarp();
      for (int i = 0; i < kFieldRows && row + i < fields_y.count(); ++i) {
        const int64_t cell_y = row + i, y_begin = fields_y.begin(cell_y), y_end = fields_y.begin(cell_y + 1);
        const int64_t down = (ya.next(cell_y) - cell_y) * source.map.y;
        Columns<T> at_x(xa, x_begin + lane);
        for (int64_t x = x_begin + lane; x - lane < x_end; x += kWarp, at_x.advance(xa)) {
          const bool inside = x < x_end;
          const Between<T> here = at_x.between(xa);
          const int field = static_cast<int>(min(max(here.cell, column), last_field) - column);
          const int64_t to = source.flipped ? p.width - 1 - x : x;
          const int sole = only[slot + i * kAcross + field];
          const Stored* const cells = image + cell_y * source.map.y + here.cell * source.map.x;
          for (int64_t y = y_begin; y < y_end; y += R) {
            int best[R];
#pragma unroll
            for (int r = 0; r < R; ++r) best[r] = sole;
            if (sole < 0 && inside) {
              T shares[R];
              const int64_t rest = ya.mul * y + ya.add - cell_y * ya.den;
#pragma unroll
              for (int r = 0; r < R; ++r) shares[r] = static_cast<T>(rest + r * ya.mul) * unit;
              best_of_masked<T, R>(cells, down, here.step * source.map.x, source.map.k, here.share, shares,
                                   masks + slot + i * kAcross + field, words, best);
            }
            sink.template take_rows<R>(place.image, y, y_end, to, inside, best);
          }
        }
      }
    });
  }
  sink.finish();
}

}  // namespace metricseg::predict
