// Row loops of the predict family. A row of labels lies between two rows of cells of each map, of a volume between four,
// which are blended first, a tile of columns at a time: [K, cells]. A vector of label columns then takes its two cells a
// lane out of one register of blended cells. All maps give pixels in the same order, so that probabilities of several
// strides add up in place. A single map keeps the best class of four vectors in registers. Derivation:
// docs/kernels/predict.md.
#pragma once

#include "../common/simd/convert.h"
#include "../common/simd/lanes.h"
#include "cpu_params.h"

namespace metricseg::predict {
namespace METRICSEG_SIMD {

using namespace metricseg::METRICSEG_SIMD;

template <typename T>
class Rows {
  using V = Lanes<T>;
  static constexpr int N = V::count;

  const CpuParams<T>& params;
  const int64_t K, cells, pixels;  // of a tile
  T *row, *z, *total, *best, *at, *factor;
  int64_t image, slice, y;  // the row of labels in work
  int64_t from;             // first cell of row
  int64_t* counts;
  double* bad;

 public:
  Rows(const CpuParams<T>& params, T* scratch, int64_t* counts, double* bad)
      : params(params),
        K(params.classes),
        cells(params.cells),
        pixels(params.tile() * N),
        row(scratch),
        z(row + K * cells),
        total(z + K * pixels),
        best(total + K * pixels),
        at(best + pixels),
        factor(at + pixels),
        counts(counts),
        bad(bad) {}

  void run(int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      image = r / (params.depth * params.height);
      slice = r / params.height % params.depth;
      y = r % params.height;
      for (int64_t v = 0; v < params.vectors; v += params.tile()) {
        const int64_t left = params.vectors - v;
        tile(v, left < params.tile() ? left : params.tile());
      }
    }
  }

 private:
  // Vectors [first, first + count) of the row.
  void tile(int64_t first, int64_t count) {
    if (!params.averages()) {
      const bool finite = blend_rows(params.sources[0], first, count);
      with_columns(params.sources[0], [&](auto near) {
        for (int64_t v = 0; v < count; v += kGroup) {
          const int64_t group = count - v < kGroup ? count - v : kGroup;
          if (group == kGroup && finite) {
            find_best<kGroup, true, near.value>(first, v);
          } else {
            for (int64_t one = v; one < v + group; ++one) find_best<1, false, near.value>(first, one);
          }
        }
      });
    } else {
      for (int m = 0; m < params.maps; ++m) add_probabilities(m, first, count);
      if (params.maps > 1) best_of(total, count);
    }
    write(first * N, count);
  }

  template <typename F>
  static void with_columns(const CpuSource<T>& source, const F& f) {
    if (source.columns.near) {
      f(std::true_type());
    } else {
      f(std::false_type());
    }
  }

  // Two cells of an axis and the share of the second. Where there is nothing to blend, the same cell twice: a share of 0
  // would make NaN of an infinity.
  struct Between {
    int64_t cell, next;
    T share;

    Between(const Axis& axis, int64_t label) : cell(axis.cell(label)) {
      const T f = axis.identity() ? T(0) : axis.template fraction<T>(label);
      share = f == T(0) ? T(0.5) : f;
      next = f == T(0) ? cell : axis.next(cell);
    }
  };

  // row [K, cells], from the first cell that the tile reads. Whether all are finite.
  bool blend_rows(const CpuSource<T>& source, int64_t first, int64_t count) {
    const Between rows(source.y, y), planes(source.z, slice);
    const T lower = rows.share, upper = T(1) - lower;
    int64_t to = source.columns.end[first];
    from = source.columns.first[first];
    for (int64_t v = first + 1; v < first + count; ++v) {
      if (source.columns.first[v] < from) from = source.columns.first[v];
      if (source.columns.end[v] > to) to = source.columns.end[v];
    }
    const Map map = source.map.plane(planes.cell), next_map = source.map.plane(planes.next);
    T extremes = T(0);
    with_storage<T>(map.type, [&](auto* stored) {
      using S = std::remove_pointer_t<decltype(stored)>;
      const auto* top = reinterpret_cast<const S*>(map.at(image, 0, rows.cell, from));
      const auto* bottom = reinterpret_cast<const S*>(map.at(image, 0, rows.next, from));
      const int64_t to_next = reinterpret_cast<const S*>(next_map.data) - reinterpret_cast<const S*>(map.data);
      const int64_t n = to - from;
      T* out = row;
      for (int64_t k = 0; k < K; ++k, top += map.k, bottom += map.k, out += cells) {
        if (map.x == 1) {
          for (int64_t i = 0; i < n; ++i) out[i] = upper * widen(top[i]) + lower * widen(bottom[i]);
        } else {
          for (int64_t i = 0; i < n; ++i) out[i] = upper * widen(top[i * map.x]) + lower * widen(bottom[i * map.x]);
        }
        if (to_next != 0) {
          for (int64_t i = 0; i < n; ++i) {
            const int64_t at = to_next + i * map.x;
            out[i] = mix(out[i], upper * widen(top[at]) + lower * widen(bottom[at]), planes.share);
          }
        }
        for (int64_t i = n; i < n + N; ++i) out[i] = T(0);            // read with the last vector, not used
        for (int64_t i = 0; i < n; ++i) extremes += out[i] - out[i];  // NaN from an infinity or a NaN
      }
    });
    return extremes == T(0);
  }

  // Columns of a vector: out of one register of cells, or lane by lane.
  template <bool near>
  struct Column {
    int64_t offset;
    typename V::Bits left, right;
    V lower, upper;

    METRICSEG_HD Column() = default;
    METRICSEG_HD Column(const Columns<T>& columns, int64_t vector, int64_t from)
        : offset(columns.first[vector] - from) {
      std::memcpy(&left, columns.left + vector * N, sizeof left);
      std::memcpy(&right, columns.right + vector * N, sizeof right);
      lower = V::load(columns.fraction + vector * N);
      upper = V(T(1)) - lower;
    }

    METRICSEG_HD V of(const T* cells) const {
      const T* p = cells + offset;
      if constexpr (near) {
        const V held = V::load(p);
        return upper * permute(held, left) + lower * permute(held, right);
      } else {
        V a, b;
        for (int i = 0; i < N; ++i) {
          a.v[i] = p[left[i]];
          b.v[i] = p[right[i]];
        }
        return upper * a + lower * b;
      }
    }
  };

  // best and at of `group` vectors of the single map; NaN is larger than all.
  template <int group, bool finite, bool near>
  METRICSEG_HD void find_best(int64_t first, int64_t v) {
    const Columns<T>& columns = params.sources[0].columns;
    Column<near> column[group];
    V top[group], index[group];
    for (int g = 0; g < group; ++g) {
      column[g] = Column<near>(columns, first + v + g, from);
      top[g] = column[g].of(row);
      index[g] = V(T(0));
    }
    const T* cells_of_class = row + cells;
    for (int64_t k = 1; k < K; ++k, cells_of_class += cells) {
      const V here(static_cast<T>(k));
      for (int g = 0; g < group; ++g) {
        const V value = column[g].of(cells_of_class);
        keep_better<finite>(value, here, &top[g], &index[g]);
      }
    }
    for (int g = 0; g < group; ++g) {
      top[g].store(best + (v + g) * N);
      index[g].store(at + (v + g) * N);
    }
  }

  template <bool finite>
  METRICSEG_HD static void keep_better(V value, V here, V* top, V* index) {
    Mask<T> better = value > *top;
    if constexpr (!finite) better = better | ((value != value) & (*top == *top));
    *top = select(better, value, *top);
    *index = select(better, here, *index);
  }

  // best and at of scores [K, pixels]
  METRICSEG_HD void best_of(const T* scores, int64_t count) {
    for (int64_t i = 0; i < count * N; i += N) {
      V top = V::load(scores + i), index(T(0));
      for (int64_t k = 1; k < K; ++k) {
        keep_better<false>(V::load(scores + k * pixels + i), V(static_cast<T>(k)), &top, &index);
      }
      top.store(best + i);
      index.store(at + i);
    }
  }

  // total (+)= share softmax(z), best and at of a single map
  void add_probabilities(int m, int64_t first, int64_t count) {
    const CpuSource<T>& source = params.sources[m];
    blend_rows(source, first, count);
    with_columns(source, [&](auto near) { interpolate<near.value>(source, first, count); });
    if (params.maps == 1) best_of(z, count);
    for (int64_t i = 0; i < count * N; i += N) {
      const V bound = V::load(factor + i);
      V sum(T(0));
      for (int64_t k = 0; k < K; ++k) {
        const V e = exp_below_zero(V::load(z + k * pixels + i) - bound);
        e.store(z + k * pixels + i);
        sum = sum + e;
      }
      const V scale = V(static_cast<T>(source.share)) / sum;
      for (int64_t k = 0; k < K; ++k) {
        const V p = scale * V::load(z + k * pixels + i);
        T* const sums = total + k * pixels + i;
        (m == 0 ? p : V::load(sums) + p).store(sums);
      }
      // of a single map the best logit decides, and its probability is the largest
      if (params.maps == 1) scale.store(best + i);
    }
  }

  // z [K, pixels], and their maximum as factor
  template <bool near>
  METRICSEG_HD void interpolate(const CpuSource<T>& source, int64_t first, int64_t count) {
    for (int64_t v = 0; v < count; ++v) {
      const Column<near> column(source.columns, first + v, from);
      V top(-std::numeric_limits<T>::infinity());
      for (int64_t k = 0; k < K; ++k) {
        const V value = column.of(row + k * cells);
        value.store(z + k * pixels + v * N);
        top = max(value, top);
      }
      top.store(factor + v * N);
    }
  }

  // Pixels [x, x + count N) of the row, those that exist.
  void write(int64_t x, int64_t count) {
    const int64_t n = params.width - x < count * N ? params.width - x : count * N;
    if (params.counts) return count_labels(x, n);
    switch (params.labels.type) {
      case Type::u8:
        return write_as<uint8_t>(x, n);
      case Type::i16:
        return write_as<int16_t>(x, n);
      case Type::i32:
        return write_as<int32_t>(x, n);
      default:
        write_as<int64_t>(x, n);
    }
  }

  template <typename L>
  void write_as(int64_t x, int64_t n) {
    L* const out = reinterpret_cast<L*>(at_row(params.labels, x));
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<L>(static_cast<Index<T>>(at[i]));
    if (params.confidence) std::memcpy(at_row(params.confidence, x), best, n * sizeof(T));
    if (params.entropy) write_entropy(reinterpret_cast<T*>(at_row(params.entropy, x)), n);
  }

  char* at_row(const Map& map, int64_t x) const { return map.plane(slice).at(image, 0, y, x); }

  // -sum_k p log p; 0 log 0 = 0
  void write_entropy(T* out, int64_t n) {
    const V zero(T(0));
    for (int64_t i = 0; i < n; i += N) {
      V sum = zero;
      for (int64_t k = 0; k < K; ++k) {
        const V p = V::load(total + k * pixels + i);
        sum = sum - select(p == zero, zero, p * log(p));
      }
      sum.store(factor + i);
    }
    std::memcpy(out, factor, n * sizeof(T));
  }

  void count_labels(int64_t x, int64_t n) {
    dispatch_label(params.target.type, [&](auto zero) {
      const auto* const row = reinterpret_cast<const decltype(zero)*>(at_row(params.target, x));
      for (int64_t i = 0; i < n; ++i) {
        const int64_t label = static_cast<int64_t>(row[i * params.target.x]);
        const int64_t found = class_of(label, K, params.ignore_index);
        if (found >= 0) {
          ++counts[found * K + static_cast<int64_t>(at[i])];
        } else if (found == kOutOfRange) {
          bad[1] = bad[0] == 0 || static_cast<double>(label) > bad[1] ? static_cast<double>(label) : bad[1];
          bad[0] += 1;
        }
      }
    });
  }
};

template <typename T>
void rows(const CpuParams<T>& params, int64_t begin, int64_t end, T* scratch, int64_t* counts, double* bad) {
  Rows<T>(params, scratch, counts, bad).run(begin, end);
}

template <typename T>
constexpr Loops<T> loops{Lanes<T>::count, rows<T>};

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::predict
