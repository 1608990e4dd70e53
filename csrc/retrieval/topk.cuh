// The k largest products of queries with the rows of a bank on CUDA. `part` takes 64 queries and a part of the bank, 128
// rows at a time: products of a tile in registers, then in shared memory, where a warp takes a query: while a product is
// larger than the least value kept, the largest is inserted into the sorted list. `merge` walks the sorted lists of the
// parts. Each product is summed in an order that depends on D alone, so ties are decided by index. Derivation:
// docs/kernels/retrieval.md.
#pragma once

#include <limits>

#include "../common/cuda/reduce.cuh"
#include "../common/cuda/scalar.cuh"
#include "../common/cuda/vec.cuh"
#include "params.h"

namespace metricseg::retrieval {

constexpr int kThreads = 128, kWarps = kThreads / kWarp;
constexpr int kQueries = 64, kDepth = 16;  // of a tile; values of its rows in shared memory at a time
constexpr int kMergeThreads = 128;
constexpr int64_t kListBytes = 16 << 10;                              // at most, of lists in shared memory
constexpr int64_t kMostParts = 64, kBlocks = 512, kLeastRows = 1024;  // parts; of the grid, about; of a part

// Rows of a tile; 8 x 8 products of a thread, or 8 x 4.
template <typename T>
constexpr int kRows = sizeof(T) == 8 ? 64 : 128;

// An entry of a list. Rows are counted within the part; `row` of an empty one is not read.
template <typename T>
struct Best {
  T value;
  int row;
};

struct TopkLayout {
  int64_t part_rows;  // a multiple of kRows
  int parts;
  bool shared_lists;
  int64_t rows_at, products_at, lists_at, smem;  // bytes; queries are at 0
};

template <typename T>
TopkLayout make_topk_layout(const TopkParams<T>& p) {
  constexpr int64_t kSize = sizeof(T);
  TopkLayout l{};
  const int64_t blocks = ceil_div(p.query_count, kQueries), tiles = ceil_div(p.rows, kRows<T>);
  int64_t parts = std::min({ceil_div(kBlocks, blocks), kMostParts, p.rows / std::max(kLeastRows, p.k)});
  parts = std::max<int64_t>(parts, 1);
  const int64_t part_tiles = std::max<int64_t>(ceil_div(tiles, parts), 1);
  l.part_rows = part_tiles * kRows<T>;
  l.parts = static_cast<int>(std::max<int64_t>(ceil_div(tiles, part_tiles), 1));  // none is empty
  l.rows_at = kDepth * (kQueries + 4) * kSize;
  l.products_at = l.rows_at + kDepth * (kRows<T> + 4) * kSize;
  l.lists_at = ceil_div(l.products_at + kQueries * (kRows<T> + 1) * kSize, 16) * 16;
  const int64_t bytes = kQueries * p.k * sizeof(Best<T>);
  l.shared_lists = bytes <= kListBytes;
  l.smem = l.lists_at + (l.shared_lists ? bytes : 0);
  return l;
}

// to[d * stride + i] = value d of row i, of `count` rows from `first` on; zeros beyond `rows` and D. Lanes run along
// values if these are neighbors, else along rows.
template <int Count, typename T>
__device__ __forceinline__ void load_rows(const Map& from, int64_t first, int64_t rows, int64_t begin, int64_t depth,
                                          T* to) {
  constexpr int kEach = 8, kStride = Count + 4;  // loads of a thread, before it stores
  const bool along = from.x == 1;
  const auto place = [&](int at) { return along ? at / kDepth : at % Count; };
  const auto value = [&](int at) { return along ? at % kDepth : at / Count; };
  with_storage<T>(from, [&](auto* data) {
#pragma unroll 1
    for (int base = threadIdx.x; base < Count * kDepth; base += kEach * kThreads) {
      T values[kEach];
#pragma unroll
      for (int q = 0; q < kEach; ++q) {
        const int at = base + q * kThreads;
        const int64_t row = first + place(at), d = begin + value(at);
        values[q] = row < rows && d < depth ? widen<T>(data[row * from.y + d * from.x]) : T(0);
      }
#pragma unroll
      for (int q = 0; q < kEach; ++q) {
        const int at = base + q * kThreads;
        to[value(at) * kStride + place(at)] = values[q];
      }
    }
  });
}

// products [kQueries, kRows + 1] of queries from `query` on with rows from `row` on. A thread has 8 queries, and of the
// rows 16 bytes out of every 256.
template <typename T>
__device__ __forceinline__ void multiply(const TopkParams<T>& p, int64_t query, int64_t row, int64_t end, T* queries,
                                         T* rows, T* products) {
  using V = Vec<T>;
  constexpr int kMine = 8, kColumns = 16, kOthers = kRows<T> / kColumns, kSpan = kColumns * V::kCount;
  const int column = threadIdx.x % kColumns * V::kCount, first = threadIdx.x / kColumns * kMine;
  T sums[kMine][kOthers] = {};
  for (int64_t begin = 0; begin < p.depth; begin += kDepth) {
    __syncthreads();
    load_rows<kQueries>(p.queries, query, p.query_count, begin, p.depth, queries);
    load_rows<kRows<T>>(p.bank, row, end, begin, p.depth, rows);
    __syncthreads();
#pragma unroll 4
    for (int d = 0; d < kDepth; ++d) {
      V mine[kMine / V::kCount], others[kOthers / V::kCount];
#pragma unroll
      for (int i = 0; i < kMine / V::kCount; ++i) {
        mine[i] = *reinterpret_cast<const V*>(queries + d * (kQueries + 4) + first + i * V::kCount);
      }
#pragma unroll
      for (int j = 0; j < kOthers / V::kCount; ++j) {
        others[j] = *reinterpret_cast<const V*>(rows + d * (kRows<T> + 4) + j * kSpan + column);
      }
#pragma unroll
      for (int i = 0; i < kMine; ++i) {
#pragma unroll
        for (int j = 0; j < kOthers; ++j) {
          sums[i][j] += mine[i / V::kCount].values[i % V::kCount] * others[j / V::kCount].values[j % V::kCount];
        }
      }
    }
  }
  __syncthreads();  // the products before have been read
#pragma unroll
  for (int j = 0; j < kOthers; ++j) {
    const int at = j / V::kCount * kSpan + column + j % V::kCount;
    bool some = row + at < end;
    if (some && p.valid) some = p.valid.template as<const uint8_t>()[(row + at) * p.valid.x] != 0;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const bool known = some && sums[i][j] == sums[i][j];
      products[(first + i) * (kRows<T> + 1) + at] = known ? sums[i][j] : -std::numeric_limits<T>::infinity();
    }
  }
  __syncthreads();
}

// Puts an entry into a sorted list of a warp, after entries that are as large. A lane holds every 32nd entry: it reads
// and writes no other. Eight reads of a lane are issued before the first is waited for.
template <typename T>
__device__ __forceinline__ void insert(Best<T>* list, int k, Best<T> entry) {
  constexpr int kReads = 8;
  const int lane = threadIdx.x % kWarp, before = lane > 0 ? lane - 1 : 0;
  bool found = false;  // its place; then `entry` is what had to move from there on
  const auto stays = [&](const Best<T>& other) { return !found && other.value >= entry.value; };
  for (int base = lane; base - lane < k; base += kReads * kWarp) {
    Best<T> own[kReads];
#pragma unroll
    for (int r = 0; r < kReads; ++r) {
      const int at = base + r * kWarp;
      own[r] = at < k ? list[at] : Best<T>{-std::numeric_limits<T>::infinity(), 0};
    }
#pragma unroll
    for (int r = 0; r < kReads; ++r) {
      const int at = base + r * kWarp;
      if (at - lane >= k) break;
      const Best<T> last{__shfl_sync(kFullMask, own[r].value, kWarp - 1),
                         __shfl_sync(kFullMask, own[r].row, kWarp - 1)};
      const Best<T> lower{__shfl_sync(kFullMask, own[r].value, before), __shfl_sync(kFullMask, own[r].row, before)};
      if (at < k && !stays(own[r])) list[at] = lane > 0 && !stays(lower) ? lower : entry;
      if (stays(last)) continue;
      entry = last;
      found = true;
    }
  }
}

// The largest of the values of all lanes, and of equal ones that of the lowest row.
template <typename T>
__device__ __forceinline__ Best<T> warp_best(Best<T> best) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Best<T> other{__shfl_xor_sync(kFullMask, best.value, step), __shfl_xor_sync(kFullMask, best.row, step)};
    if (other.value > best.value || (other.value == best.value && other.row < best.row)) best = other;
  }
  return best;
}

template <typename T>
__device__ __forceinline__ void write(const TopkParams<T>& p, int64_t query, int i, T value, int64_t index) {
  p.values[query * p.k + i] = value;
  p.indices[query * p.k + i] = value > -std::numeric_limits<T>::infinity() ? index : -1;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 3) part_kernel(TopkParams<T> p, Best<T>* parts, TopkLayout l) {
  constexpr int kEach = kRows<T> / kWarp;
  const T none = -std::numeric_limits<T>::infinity();
  auto* const smem = shared_memory<unsigned char>();
  auto* const queries = reinterpret_cast<T*>(smem);
  auto* const rows = reinterpret_cast<T*>(smem + l.rows_at);
  auto* const products = reinterpret_cast<T*>(smem + l.products_at);
  const int part = blockIdx.x % l.parts, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t query = blockIdx.x / l.parts * int64_t(kQueries), begin = part * l.part_rows;
  const int64_t end = begin + l.part_rows < p.rows ? begin + l.part_rows : p.rows;
  const int k = static_cast<int>(p.k);
  const int count = p.query_count - query < kQueries ? static_cast<int>(p.query_count - query) : kQueries;
  Best<T>* const out = parts + (part * p.query_count + query) * k;
  Best<T>* const lists = l.shared_lists ? reinterpret_cast<Best<T>*>(smem + l.lists_at) : out;
  for (int q = warp; q < count; q += kWarps) {
    for (int i = lane; i < k; i += kWarp) lists[q * k + i] = {none, 0};
  }
  for (int64_t row = begin; row < end; row += kRows<T>) {
    multiply(p, query, row, end, queries, rows, products);
    for (int q = warp; q < count; q += kWarps) {
      Best<T>* const list = lists + q * k;
      // the lane that holds the last entry shows it to the others
      const int holder = (k - 1) % kWarp;
      T least = __shfl_sync(kFullMask, lane == holder ? list[k - 1].value : none, holder);
      T values[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i) values[i] = products[q * (kRows<T> + 1) + i * kWarp + lane];
      for (;;) {
        Best<T> best{none, 0};
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          if (values[i] > best.value) best = {values[i], i * kWarp + lane};
        }
        best = warp_best(best);
        if (!(best.value > least)) break;
#pragma unroll
        for (int i = 0; i < kEach; ++i) values[i] = best.row == i * kWarp + lane ? none : values[i];
        insert(list, k, Best<T>{best.value, static_cast<int>(row - begin) + best.row});
        least = __shfl_sync(kFullMask, lane == holder ? list[k - 1].value : none, holder);
      }
    }
  }
  for (int q = warp; q < count; q += kWarps) {
    for (int i = lane; i < k; i += kWarp) {
      const Best<T> best = lists[q * k + i];
      if (l.parts == 1) {
        write(p, query + q, i, best.value, best.row);
      } else if (l.shared_lists) {
        out[q * k + i] = best;
      }
    }
  }
}

// A warp takes a query, a lane two parts: k times the largest head of their lists, of equal ones that of the first part,
// whose rows come first.
template <typename T>
__global__ void __launch_bounds__(kMergeThreads) merge_kernel(TopkParams<T> p, Best<T>* parts, TopkLayout l) {
  const T none = -std::numeric_limits<T>::infinity();
  const int lane = threadIdx.x % kWarp;
  const int64_t query = blockIdx.x * int64_t(kMergeThreads / kWarp) + threadIdx.x / kWarp;
  if (query >= p.query_count) return;
  const auto head_of = [&](int part, int at) {
    return part < l.parts && at < p.k ? parts[(part * p.query_count + query) * p.k + at] : Best<T>{none, 0};
  };
  Best<T> heads[2] = {head_of(lane, 0), head_of(lane + kWarp, 0)};
  int taken[2] = {0, 0};
  for (int i = 0; i < p.k; ++i) {
    const bool second = heads[1].value > heads[0].value;
    const Best<T> best = warp_best(Best<T>{second ? heads[1].value : heads[0].value, second ? lane + kWarp : lane});
    const int which = best.row / kWarp;
    const int row = which == 0 ? heads[0].row : heads[1].row;
    if (best.row % kWarp != lane) continue;
    write(p, query, i, best.value, best.row * l.part_rows + row);
    if (which == 0) {
      heads[0] = head_of(lane, ++taken[0]);
    } else {
      heads[1] = head_of(lane + kWarp, ++taken[1]);
    }
  }
}

}  // namespace metricseg::retrieval
