// Stream of X Y^T tiles on CUDA, each passed to an epilogue. A block of eight warps keeps 128 rows of X in shared memory
// and walks over tiles of Y, the next one being copied while one is multiplied. Rows are sorted by label, so most tiles
// hold negatives only and need no masks. Rows wider than kWhole bytes go in chunks, of X and Y both.
#pragma once

#include "../../common/cuda/sweep.cuh"
#include "products.cuh"
#include "rows.h"

namespace metricseg::row_pairs {

// Tiles of Y that a block visits: [begin, end) less [hole, hole_end). Those in [own, own_end), and outside of [full,
// full_end), may hold other pairs than negatives.
struct Span {
  int begin, end, hole, hole_end, own, own_end, full, full_end;

  __device__ int count() const { return end - begin - (hole_end - hole); }
  __device__ int tile(int i) const { return begin + i + (begin + i >= hole ? hole_end - hole : 0); }
  __device__ bool masked(int tile) const { return tile < full || tile >= full_end || (tile >= own && tile < own_end); }
};

// A thread's view of a tile beside its products: its two rows, and the columns in shared memory.
template <class P>
struct Pairs {
  using T = typename P::T;
  enum Field { kGroups, kIds, kWeights, kSquares, kCoefs };

  int row;  // of the first; the second is 8 further
  int groups[2], ids[2];
  T weights[2], squares[2];
  T coefs[2][kMostCoefs];  // 0 without
  const char* fields;
  int first;  // column
  bool self, has_ids, weighted, by_column;

  static __device__ int column(int n, int e) { return 8 * n + threadIdx.x % 4 * 2 + e; }
  template <typename Value = T>
  __device__ Value field(int which, int column) const {
    return reinterpret_cast<const Value*>(fields + which * kFieldBytes)[column];
  }
  __device__ void masks(int i, int column, bool& positive, bool& negative) const {
    const int group = field<int>(kGroups, column);
    const bool same = group == groups[i];
    positive = same && group >= 0;
    negative = !same && group >= 0;
    if (self && positive) positive = (has_ids ? field<int>(kIds, column) : first + column) != ids[i];
  }
  __device__ T weight(int column) const { return weighted ? field(kWeights, column) : T(1); }
  __device__ T coef(int which, int column) const { return by_column ? field(kCoefs + which, column) : T(0); }
};

template <typename T>
__device__ __forceinline__ Span find_span(const Pass<T>& p, int block) {
  constexpr int kMost = 1 << 30;
  const Side<T>& y = p.y;
  // greatest and least group of these rows
  int rows[2] = {-1, -kMost};
  for (int r = threadIdx.x; r < kRows; r += kThreads) {
    const int group = p.x.groups[block * kRows + r];
    if (group >= 0) rows[0] = group, rows[1] = -group;
  }
  block_max(rows);
  const int high = rows[0], low = -rows[1];
  Span none{};
  if (high < 0) return none;
  // ends and negated beginnings: alive, full, own, pure
  int ends[4] = {0, 0, 0, 0}, begins[4] = {-kMost, -kMost, -kMost, -kMost};
  const auto add = [&](int i, bool some, int t) {
    if (!some) return;
    ends[i] = t + 1 > ends[i] ? t + 1 : ends[i];
    begins[i] = -t > begins[i] ? -t : begins[i];
  };
#pragma unroll 4
  for (int t = threadIdx.x; t < y.tiles; t += kThreads) {
    const int least = y.low[t], greatest = y.high[t];
    add(0, greatest >= 0, t);
    add(1, least >= 0, t);
    add(2, greatest >= low && least <= high, t);
    add(3, least == greatest && least == low && low == high, t);
  }
  int all[8];
#pragma unroll
  for (int i = 0; i < 4; ++i) all[i] = ends[i], all[4 + i] = begins[i];
  block_max(all);
#pragma unroll
  for (int i = 0; i < 4; ++i) all[4 + i] = all[i] > 0 ? -all[4 + i] : 0;
  Span s{all[4], all[0], 0, 0, all[6], all[2], all[5], all[1]};
  if (!p.negatives) {
    s.begin = s.own;
    s.end = s.own_end;
  } else if (!p.positives) {
    s.hole = all[7];
    s.hole_end = all[3];
  }
  return s;
}

// What a block knows before its walk, and the walk.
template <class P>
class Walk {
 public:
  using T = typename P::T;

  __device__ __forceinline__ Walk(const Pass<T>& pass, int block, int slice, int part)
      : p(pass), block(block), slice(slice), span(find_span(pass, block)) {
    const int count = span.count();
    begin = static_cast<int>(int64_t(count) * part / p.parts);
    end = static_cast<int>(int64_t(count) * (part + 1) / p.parts);
    const int lane = threadIdx.x % kWarp;
    pairs.row = block * kRows + threadIdx.x / kWarp * 16 + lane / 4;
    pairs.self = p.self;
    pairs.has_ids = p.x.ids != nullptr;
    pairs.weighted = p.y.weights != nullptr;
    pairs.by_column = p.y.coefs != nullptr;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = pairs.row + 8 * i;
      pairs.groups[i] = p.x.groups[r];
      pairs.ids[i] = pairs.has_ids ? p.x.ids[r] : r;
      pairs.squares[i] = p.x.squares[r];
      pairs.weights[i] = p.x.weights ? p.x.weights[r] : T(1);
#pragma unroll
      for (int k = 0; k < kMostCoefs; ++k) {
        pairs.coefs[i][k] = p.x.coefs ? p.x.coefs[int64_t(k) * p.x.padded + r] : T(0);
      }
    }
  }

  Pairs<P> pairs;

  // use.tile<masked>(s, pairs) for every tile; if kSecond, then use.rows(s, y, stride, width), with rows of Y or their
  // slice in shared memory. If kKeep, whole rows of X stay in registers.
  template <bool kSecond, bool kKeep, class Use>
  __device__ __forceinline__ void run(Use&& use) {
    const Geometry& g = p.geometry;
    const int stride = g.chunk_bytes + kSkew, each = g.chunks + (kSecond && !g.whole());
    const int items = (end - begin) * each;
    char* const smem = shared_memory<char>();
    if (items > 0) copy(0, each);
    T s[P::kColumns / 8][4];
    [[maybe_unused]] typename P::Kept kept;
    for (int item = 0; item < items; ++item) {
      wait_copies<0>();
      __syncthreads();  // this item has come, and the one before has been read
      if (item + 1 < items) copy(item + 1, each);
      const char* const stage = smem + g.x_bytes + item % 2 * g.stage_bytes;
      const int tile = span.tile(begin + item / each), chunk = item % each;
      if (chunk == 0) {
#pragma unroll
        for (auto& four : s) four[0] = four[1] = four[2] = four[3] = T(0);
      }
      if constexpr (kKeep) {
        if (item == 0) P::keep(kept, smem + threadIdx.x / kWarp * 16 * stride, stride, g.chunk_bytes);
        P::multiply_kept(s, kept, stage, stride, g.chunk_bytes);
      } else if (chunk < g.chunks) {
        const char* const x = g.whole() ? smem : stage + P::kColumns * stride;
        P::multiply(s, x + threadIdx.x / kWarp * 16 * stride, stage, stride, g.chunk_bytes);
      }
      if (chunk == g.chunks - 1) {
        pairs.fields = stage + g.stage_bytes - kFields * kFieldBytes;
        pairs.first = tile * P::kColumns;
        // one copy of the epilogue suffices for products that take longer than the masks do
        if (!P::kKeeps || span.masked(tile)) {
          use.template tile<true>(s, pairs);
        } else {
          use.template tile<false>(s, pairs);
        }
      }
      if constexpr (kSecond) {
        if (chunk == each - 1) use.rows(s, stage, g.whole() ? stride : g.slice_bytes + kSkew, slice_width());
      }
    }
  }

  // bytes of this block's columns of the gradient
  __device__ int slice_width() const {
    const int left = p.geometry.row_bytes - slice * p.geometry.slice_bytes;
    return left < p.geometry.slice_bytes ? left : p.geometry.slice_bytes;
  }

 private:
  const Pass<T>& p;
  const int block, slice;
  const Span span;
  int begin, end;

  static __device__ __forceinline__ void copy_rows(char* to, const char* from, int rows, int bytes, int row_bytes,
                                                   int stride) {
    block_sweep(rows, bytes / 16, false,
                [&](int r, int w) { copy_async(to + r * stride + w * 16, from + int64_t(r) * row_bytes + w * 16); });
  }

  __device__ __forceinline__ void copy(int item, int each) {
    const Geometry& g = p.geometry;
    char* const smem = shared_memory<char>();
    char* const stage = smem + g.x_bytes + item % 2 * g.stage_bytes;
    const int tile = span.tile(begin + item / each), chunk = item % each, stride = g.chunk_bytes + kSkew;
    const char* const x = p.x.data + int64_t(block) * kRows * g.row_bytes;
    const char* const y = p.y.data + int64_t(tile) * P::kColumns * g.row_bytes;
    if (chunk < g.chunks) {
      copy_rows(stage, y + chunk * g.chunk_bytes, P::kColumns, g.chunk_bytes, g.row_bytes, stride);
      if (!g.whole()) {
        copy_rows(stage + P::kColumns * stride, x + chunk * g.chunk_bytes, kRows, g.chunk_bytes, g.row_bytes, stride);
      } else if (item == 0) {
        copy_rows(smem, x, kRows, g.chunk_bytes, g.row_bytes, stride);
      }
    } else {
      copy_rows(stage, y + slice * g.slice_bytes, P::kColumns, slice_width(), g.row_bytes, g.slice_bytes + kSkew);
    }
    if (chunk == g.chunks - 1) copy_fields(stage + g.stage_bytes - kFields * kFieldBytes, tile * P::kColumns);
    commit_copies();
  }

  __device__ __forceinline__ void copy_fields(char* to, int first) const {
    const int field = threadIdx.x / 16, word = threadIdx.x % 16;
    const Side<T>& y = p.y;
    const void* from = nullptr;
    if (field == 0) from = y.groups + first;
    if (field == 1 && y.ids) from = y.ids + first;
    if (field == 2 && y.weights) from = y.weights + first;
    if (field == 3) from = y.squares + first;
    if (field >= 4 && field < kFields && y.coefs) from = y.coefs + int64_t(field - 4) * y.padded + first;
    const int bytes = field < 2 ? P::kColumns * 4 : kFieldBytes;
    if (from && word * 16 < bytes) {
      copy_async(to + field * kFieldBytes + word * 16, static_cast<const char*>(from) + word * 16);
    }
  }
};

// A phase of row statistics: out [parts, Phase::kSums, padded]. In fp32, and without rows of X in
// registers, Phase::kBlocks fit in a multiprocessor; Phase::kKeeps says whether it gains by these. start(k): sum k of a row without pairs.
template <class P, class Phase, bool kKeep>
__global__ void __launch_bounds__(kThreads, kKeep || sizeof(typename P::T) == 8 ? 1 : Phase::kBlocks)
    stats_kernel(Pass<typename P::T> p, Phase phase, typename P::T* out) {
  using T = typename P::T;
  const int part = blockIdx.x % p.parts, block = blockIdx.x / p.parts;
  Walk<P> walk(p, block, 0, part);
  auto state = phase.begin(walk.pairs);
  walk.template run<false, kKeep>(state);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    T sums[Phase::kSums];
    state.finish(i, sums);
    if (threadIdx.x % 4 != 0) continue;
    const bool live = walk.pairs.groups[i] >= 0;
#pragma unroll
    for (int k = 0; k < Phase::kSums; ++k) {
      out[(int64_t(part) * Phase::kSums + k) * p.x.padded + walk.pairs.row + 8 * i] = live ? sums[k] : Phase::start(k);
    }
  }
}

// Where gradients go: out [N, D] if there is one part, and it has the operands' type; else shares [parts, N, D].
template <typename T>
struct GradientOut {
  Map out;
  T* shares;
  const int64_t* order;
  int64_t count, depth;
  const T* largest;  // [blocks] of the coefficients, for weights that go into fp16
  int blocks;
};

// fp16 weights are scaled so that the largest is close to the end of the range, since most are as small as 1 / M.
constexpr float kTopOfFp16 = 16384.0f;

// One part's share of sum_j W_ij y_j, or of sum_j W_ij (x_i - y_j), for a thread's rows.
template <class P, class Form>
struct GradientSums {
  using T = typename P::T;
  static constexpr bool kFp16 = std::is_same_v<typename P::Operand, __half>;

  const Form& form;
  T unit = 1;
  T sums[P::kSlice / 2] = {};
  T total[2] = {};

  template <bool kMasked>
  __device__ __forceinline__ void tile(T (&s)[P::kColumns / 8][4], const Pairs<P>& pairs) {
    form.template weigh<kMasked>(s, pairs);
#pragma unroll
    for (auto& four : s) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (kFp16) four[e] *= unit;
        if (Form::kDistances) total[e / 2] += four[e];
      }
    }
  }
  __device__ __forceinline__ void rows(T (&w)[P::kColumns / 8][4], const char* y, int stride, int width) {
    P::add_product(sums, w, y, stride, width);
  }
};

template <class P, class Form>
__global__ void __launch_bounds__(kThreads, 1)
    gradient_kernel(Pass<typename P::T> p, Form form, GradientOut<typename P::T> out) {
  using T = typename P::T;
  using Operand = typename P::Operand;
  constexpr int V = P::kV;
  const Geometry& g = p.geometry;
  const int part = blockIdx.x % p.parts, slice = blockIdx.x / p.parts % g.slices;
  const int block = blockIdx.x / p.parts / g.slices;
  Walk<P> walk(p, block, slice, part);
  GradientSums<P, Form> state{form};
  if (GradientSums<P, Form>::kFp16) {
    T largest = T(1e-30);
    for (int i = 0; i < out.blocks; ++i) largest = out.largest[i] > largest ? out.largest[i] : largest;
    state.unit = std::exp2(std::floor(std::log2(kTopOfFp16 / largest)));  // so that nothing is rounded
  }
  walk.template run<true, false>(state);
  const int first = slice * g.slice_bytes / int(sizeof(Operand)) + threadIdx.x % 4 * V;
  const int64_t slice_end = (slice + 1) * g.slice_bytes / int(sizeof(Operand));
  const int64_t end = slice_end < out.depth ? slice_end : out.depth;
  const T whole = T(1) / state.unit;
  const auto store = [&](auto* data, int64_t s_row, int64_t s_column) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = walk.pairs.row + 8 * i;
      const T total = Form::kDistances ? group_sum(state.total[i], 4) : T(0);
      if (r >= out.count) continue;
      const bool live = walk.pairs.groups[i] >= 0;
      const auto* const x = reinterpret_cast<const Operand*>(p.x.data + int64_t(r) * g.row_bytes);
      auto* const row = data + out.order[r] * s_row;
#pragma unroll
      for (int k = 0; k < P::kSlice / 4; ++k) {
        const int d = first + k / V * 4 * V + k % V;
        if (d >= end) break;
        T value = state.sums[k / V * 2 * V + i * V + k % V];
        if (Form::kDistances) value = widen<T>(x[d]) * total - value;
        narrow(live ? value * whole : T(0), row[d * s_column]);
      }
    }
  };
  if constexpr (P::kHalf) {
    if (out.shares == nullptr) return store(out.out.template as<Operand>(), out.out.y, out.out.x);
    store(out.shares + part * out.count * out.depth, out.depth, 1);
  } else {  // one store for both
    const bool direct = out.shares == nullptr;
    T* const data = direct ? out.out.template as<T>() : out.shares + part * out.count * out.depth;
    store(data, direct ? out.out.y : out.depth, direct ? out.out.x : 1);
  }
}

// out = the sum of the shares of all parts.
template <typename T>
__global__ void __launch_bounds__(kThreads) add_shares_kernel(GradientOut<T> out, int parts) {
  const int64_t i = blockIdx.x * int64_t(kThreads) + threadIdx.x, size = out.count * out.depth;
  if (i >= size) return;
  T sum = 0;
  for (int part = 0; part < parts; ++part) sum += out.shares[part * size + i];
  with_storage<T>(out.out,
                  [&](auto* data) { narrow(sum, data[i / out.depth * out.out.y + i % out.depth * out.out.x]); });
}

}  // namespace metricseg::row_pairs
