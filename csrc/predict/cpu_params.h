// Arguments of the CPU kernels as plain data, for the row loops of each vector width.
#pragma once

#include <type_traits>

#include "../common/by_type.h"
#include "params.h"

namespace metricseg::predict {

constexpr int kMaxLanes = 16;
constexpr int kGroup = 4;  // vectors of pixels whose best classes stay in registers

// As many bits as T has: lanes of an index.
template <typename T>
using Index = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// Columns of a map for each vector of label columns. Pixel i of vector v blends the cells first[v] + left[v, i] and
// first[v] + right[v, i] with the weights 1 - f and f; idle lanes read cell first[v].
template <typename T>
struct Columns {
  const int64_t* first;         // [vectors]
  const int64_t* end;           // [vectors] beyond the last cell that is read
  const Index<T>*left, *right;  // [vectors, lanes]
  const T* fraction;            // [vectors, lanes]
  bool near;                    // every vector reads as many cells as it has lanes, or fewer
};

template <typename T>
struct CpuSource : Source {
  Columns<T> columns;
};

template <typename T>
struct CpuParams : Params {
  const CpuSource<T>* sources;  // [maps]
  int64_t vectors;              // of a row of labels
  int64_t cells;                // that a tile reads of a map, at most, with space for a vector

  METRICSEG_HD bool averages() const { return maps > 1 || confidence || entropy; }
  // Vectors of a tile, sized so that its scores fit in L2.
  METRICSEG_HD int64_t tile() const {
    const int64_t fit = (int64_t{96} << 10) / (int64_t{classes} * kMaxLanes * sizeof(float));
    const int64_t groups = fit / kGroup;
    return kGroup * (groups < 1 ? 1 : groups > 4 ? 4 : groups);
  }
  METRICSEG_HD int64_t scratch_values() const {
    return classes * (cells + 2 * tile() * kMaxLanes) + 4 * tile() * kMaxLanes;
  }
};

// Rows [begin, end) of the B D H rows of labels, on one thread. counts [K, K] and bad [2] are the thread's own.
template <typename T>
using Worker = void (*)(const CpuParams<T>&, int64_t begin, int64_t end, T* scratch, int64_t* counts, double* bad);

template <typename T>
struct Loops {
  int64_t lanes;  // of a vector
  Worker<T> rows;
};

using Workers = ByType<Loops>;

extern const Workers avx512_workers, avx2_workers, baseline_workers;

}  // namespace metricseg::predict
