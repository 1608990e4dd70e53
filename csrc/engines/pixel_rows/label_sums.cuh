// Sums of pixels by label on CUDA, and their gradient. A stable counting sort puts the pixels of a label side by side; a
// warp adds 64 of them, in order, for 32 channels. A run that goes on beyond these is left as a part, and parts are added
// in order: no floating-point atomics, so the same bits every time, and what is not finite stays in its label. Work does
// not depend on the number of labels. Features are read once, in place. Derivation: docs/kernels/segments.md.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../../common/cuda/reduce.cuh"
#include "../../common/cuda/scalar.cuh"

namespace metricseg {

constexpr int kSortThreads = 256, kSortRun = 8;     // pixels of a thread
constexpr int kSortTile = kSortThreads * kSortRun;  // pixels of a block
constexpr int kDigit = 6, kDigits = 1 << kDigit;    // bits that a pass sorts by, at most
constexpr int kScanThreads = 512;
constexpr int kSumWarps = 4, kSumThreads = kSumWarps * kWarp;  // of a block
constexpr int kSumRun = 64;                                    // pixels of a warp
constexpr int kSpreadThreads = 256;

template <typename T>
struct LabelSumsParams {
  Map features;  // [B, C, h, w], or their gradient
  Map labels;    // [B, h, w]; a pixel whose label is not one is in no sum
  int64_t batch, channels, height, width;
  int64_t classes;       // K, of all images
  int64_t of_image;      // an image's labels are in [0, this)
  int64_t image_step;    // what one more image adds to a label, so that images with classes of their own share none
  int64_t ignore_index;  // a label of no pixel, beside those out of range
  T* sums;               // [K, C], contiguous; backward: their gradient, with these strides
  int64_t sums_row, sums_column;
  T* mass;                 // [K] numbers of pixels; forward only
  unsigned* out_of_range;  // [B] whether an image has a label out of range, zero at first, or null; forward only

  METRICSEG_HD int64_t pixels() const { return batch * height * width; }
};

struct Pixel {
  int64_t image, y, x;
};

// Fewer than 2^32 pixels: divisions of 32 bits.
template <typename T>
__device__ __forceinline__ Pixel pixel_at(const LabelSumsParams<T>& p, uint32_t n) {
  const auto width = static_cast<uint32_t>(p.width), area = static_cast<uint32_t>(p.height * p.width);
  return {n / area, n % area / width, n % width};
}

// The label of a pixel among all images, or K if it is in no sum.
template <typename T>
__device__ __forceinline__ uint32_t key_at(const LabelSumsParams<T>& p, uint32_t n) {
  const Pixel at = pixel_at(p, n);
  const int64_t label = class_of(label_at(p.labels, at.image, at.y, at.x), p.of_image, p.ignore_index);
  return static_cast<uint32_t>(label >= 0 ? at.image * p.image_step + label : p.classes);
}

template <typename T>
__device__ __forceinline__ void mark_out_of_range(const LabelSumsParams<T>& p, uint32_t n) {
  const Pixel at = pixel_at(p, n);
  const int64_t label = label_at(p.labels, at.image, at.y, at.x);
  if (class_of(label, p.of_image, p.ignore_index) == kOutOfRange) atomicMax(&p.out_of_range[at.image], 1u);
}

struct Entry {
  uint32_t key, pixel;
};

// One pass of the sort: by `bits` bits of the key from bit `shift` on. `from` is null in the first, which reads labels.
struct SortPass {
  const Entry* from;  // [N]
  Entry* to;          // [N]
  unsigned* counts;   // [2^bits, tiles], then where the entries of a tile begin
  int shift, bits;
  int tiles;
  uint32_t* zeros;  // [zero_count], which the first pass clears
  int64_t zero_count;

  __device__ __forceinline__ int digit(uint32_t key) const { return key >> shift & ((1u << bits) - 1); }
};

template <typename T>
__device__ __forceinline__ Entry entry_at(const LabelSumsParams<T>& p, const SortPass& pass, int64_t n) {
  return pass.from ? pass.from[n] : Entry{key_at(p, static_cast<uint32_t>(n)), static_cast<uint32_t>(n)};
}

template <typename T>
__global__ void __launch_bounds__(kSortThreads) count_digits_kernel(LabelSumsParams<T> p, SortPass pass) {
  __shared__ unsigned counts[kDigits];
  if (threadIdx.x < kDigits) counts[threadIdx.x] = 0;
  __syncthreads();
  const int64_t begin = int64_t(blockIdx.x) * kSortTile;
  for (int64_t i = int64_t(blockIdx.x) * kSortThreads + threadIdx.x; i < pass.zero_count;
       i += int64_t(pass.tiles) * kSortThreads) {
    pass.zeros[i] = 0;
  }
  for (int i = threadIdx.x; i < kSortTile && begin + i < p.pixels(); i += kSortThreads) {
    atomicAdd(&counts[pass.digit(entry_at(p, pass, begin + i).key)], 1u);
  }
  __syncthreads();
  if (threadIdx.x < 1u << pass.bits) pass.counts[threadIdx.x * pass.tiles + blockIdx.x] = counts[threadIdx.x];
}

// Sum of `value` over the threads before this one in the block.
template <int Threads>
__device__ __forceinline__ unsigned sum_before(unsigned value) {
  __shared__ unsigned sums[2][Threads];
  const int thread = threadIdx.x;
  int from = 0;
  sums[0][thread] = value;
  for (int step = 1; step < Threads; step *= 2, from ^= 1) {
    __syncthreads();
    sums[from ^ 1][thread] = sums[from][thread] + (thread >= step ? sums[from][thread - step] : 0);
  }
  return sums[from][thread] - value;
}

// values[i] = sum of the values before i. One block; each thread takes a strip. A template, as several families use it.
template <int Threads>
__global__ void __launch_bounds__(Threads) scan_kernel(unsigned* values, int64_t count) {
  const int64_t strip = (count + Threads - 1) / Threads, begin = threadIdx.x * strip;
  const int64_t end = begin + strip < count ? begin + strip : count;
  unsigned sum = 0;
#pragma unroll 8
  for (int64_t i = begin; i < end; ++i) sum += values[i];
  sum = sum_before<Threads>(sum);
#pragma unroll 8
  for (int64_t i = begin; i < end; ++i) {
    const unsigned value = values[i];
    values[i] = sum;
    sum += value;
  }
}

// Entries in order of their digits, equal ones as before. A thread counts the digits of a run; the scan of these counts,
// digit by digit, gives the places in the tile.
template <typename T>
__global__ void __launch_bounds__(kSortThreads) sort_kernel(LabelSumsParams<T> p, SortPass pass) {
  uint16_t* const before = shared_memory<uint16_t>();
  // two more after each strip of a thread in the scan, so that strips begin in different banks
  const int strip = 1 << pass.bits;
  const auto slot = [&](int flat) { return flat + (flat >> pass.bits) * 2; };
  const int thread = threadIdx.x;
  for (int d = 0; d < strip; ++d) before[slot(d * kSortThreads + thread)] = 0;
  const int64_t begin = int64_t(blockIdx.x) * kSortTile + thread * kSortRun;
  Entry entries[kSortRun];
#pragma unroll
  for (int i = 0; i < kSortRun; ++i) {
    if (begin + i < p.pixels()) entries[i] = entry_at(p, pass, begin + i);
  }
#pragma unroll
  for (int i = 0; i < kSortRun; ++i) {
    if (begin + i < p.pixels()) ++before[slot(pass.digit(entries[i].key) * kSortThreads + thread)];
  }
  __syncthreads();
  unsigned sum = 0;
  for (int i = 0; i < strip; ++i) sum += before[slot(thread * strip + i)];
  sum = sum_before<kSortThreads>(sum);
  for (int i = 0; i < strip; ++i) {
    uint16_t& value = before[slot(thread * strip + i)];
    const unsigned count = value;
    value = static_cast<uint16_t>(sum);
    sum += count;
  }
  __syncthreads();
  unsigned first[kSortRun];  // of the entries of this digit in the tile
#pragma unroll
  for (int i = 0; i < kSortRun; ++i) {
    if (begin + i < p.pixels()) first[i] = before[slot(pass.digit(entries[i].key) * kSortThreads)];
  }
  __syncthreads();  // the first thread counts on in these
#pragma unroll
  for (int i = 0; i < kSortRun; ++i) {
    if (begin + i >= p.pixels()) continue;
    const int digit = pass.digit(entries[i].key);
    const unsigned place = before[slot(digit * kSortThreads + thread)]++;
    pass.to[pass.counts[digit * pass.tiles + blockIdx.x] + place - first[i]] = entries[i];
  }
}

template <typename T>
struct SumScratch {
  const Entry* entries;  // [N] in order of their keys
  uint32_t* bounds;      // [2, K] first entry of a label, and the one after its last; the first pass clears them
  T* parts;              // [units, 2, C] of the label that a unit of entries begins with, and of the one it ends with
};

// A unit is kSumRun entries: a warp adds them, a lane a channel.
template <typename T>
__global__ void __launch_bounds__(kSumThreads) add_kernel(LabelSumsParams<T> p, SumScratch<T> s, int chunks) {
  constexpr int kLine = kWarp + 1;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, chunk = blockIdx.x % chunks;
  const int64_t unit = blockIdx.x / chunks * int64_t(kSumWarps) + warp, first_channel = int64_t(chunk) * kWarp;
  const int64_t begin = unit * kSumRun, N = p.pixels();
  if (p.out_of_range && chunk == 0) {
#pragma unroll 1
    for (int64_t n = begin + lane; n < begin + kSumRun && n < N; n += kWarp) {
      mark_out_of_range(p, static_cast<uint32_t>(n));
    }
  }
  const int64_t end = begin + kSumRun < N ? begin + kSumRun : N;
  const int width = p.channels - first_channel < kWarp ? static_cast<int>(p.channels - first_channel) : kWarp;
  T* const values = shared_memory<T>() + warp * kWarp * kLine;  // [channels, pixels]
  auto* const places = reinterpret_cast<int64_t*>(shared_memory<T>() + kSumWarps * kWarp * kLine) + warp * kWarp;
  auto* const keys = reinterpret_cast<uint32_t*>(places - warp * kWarp + kSumWarps * kWarp) + warp * kWarp;
  const auto none = static_cast<uint32_t>(p.classes);
  uint32_t label = none;
  int64_t from = begin;  // where the run of `label` begins
  T sum = 0;
  // the run [from, to) of a label is its sum, or a part of it
  const auto flush = [&](int64_t to) {
    if (label == none) return;
    const bool opens = from > begin || begin == 0 || s.entries[begin - 1].key != label;
    const bool closes = to < end || end == N || s.entries[end].key != label;
    T* const row = opens && closes ? p.sums + label * p.channels : s.parts + (2 * unit + opens) * p.channels;
    if (lane < width) row[first_channel + lane] = sum;
    if (lane != 0 || chunk != 0) return;
    if (opens) s.bounds[label] = static_cast<uint32_t>(from);
    if (closes) s.bounds[p.classes + label] = static_cast<uint32_t>(to);
  };
  for (int64_t first = begin; first < begin + kSumRun; first += kWarp) {
    const int count = static_cast<int>(end - first < 0 ? 0 : end - first < kWarp ? end - first : kWarp);
    __syncthreads();
    uint32_t key = none;
    int64_t place = 0;
    if (lane < count) {
      const Entry entry = s.entries[first + lane];
      const Pixel at = pixel_at(p, entry.pixel);
      key = entry.key;
      place = p.features.offset(at.image, first_channel, at.y, at.x);
    }
    keys[lane] = key;
    places[lane] = place;
    __syncthreads();
    with_storage<T>(p.features, [&](auto* x) {
      constexpr int kBatch = 8;              // loads, before the first is stored
      const bool along = p.features.k == 1;  // lanes along channels
      for (int first_line = 0; first_line < kWarp; first_line += kBatch) {
        T batch[kBatch];
#pragma unroll
        for (int q = 0; q < kBatch; ++q) {
          const int line = first_line + q, c = along ? lane : line;
          const bool wanted = c < width && (along ? keys[line] : key) != none;
          batch[q] = wanted ? widen<T>(x[(along ? places[line] : place) + c * p.features.k]) : T(0);
        }
#pragma unroll
        for (int q = 0; q < kBatch; ++q)
          values[along ? lane * kLine + first_line + q : (first_line + q) * kLine + lane] = batch[q];
      }
    });
    __syncthreads();
    for (int i = 0; i < count; ++i) {
      if (keys[i] != label) {
        flush(first + i);
        label = keys[i];
        from = first + i;
        sum = 0;
      }
      sum += values[lane * kLine + i];
    }
  }
  if (begin < end) flush(end);
}

// The epilogue of `join`: sums and numbers of pixels as they are.
template <typename T>
struct KeptSums {
  static constexpr bool kOfWholeSums = false;  // no use for sums that are whole before
  LabelSumsParams<T> p;

  __device__ __forceinline__ void count(int64_t label, int64_t count) const { p.mass[label] = static_cast<T>(count); }
  __device__ __forceinline__ void sum(int64_t label, int64_t channel, T sum, int64_t) const {
    p.sums[label * p.channels + channel] = sum;
  }
};

// The sums of labels that were left in parts, and of those without a pixel. A block takes a label: 8 groups of 32
// channels, each every eighth part.
template <typename T, typename Epilogue>
__global__ void __launch_bounds__(256) join_kernel(LabelSumsParams<T> p, SumScratch<T> s, Epilogue epilogue) {
  constexpr int kGroups = 256 / kWarp;
  __shared__ T parts[kGroups][kWarp];
  const int64_t label = blockIdx.x, begin = s.bounds[label], end = s.bounds[p.classes + label];
  const int lane = threadIdx.x % kWarp, group = threadIdx.x / kWarp;
  if (threadIdx.x == 0) epilogue.count(label, end - begin);
  const int64_t first = begin / kSumRun, last = end > begin ? (end - 1) / kSumRun : first;
  const bool whole = end > begin && first == last;  // in one unit
  if (whole && !Epilogue::kOfWholeSums) return;
  for (int64_t channel = lane; channel - lane < p.channels; channel += kWarp) {
    T sum = 0;
    if (channel < p.channels && whole) {
      if (group == 0) sum = p.sums[label * p.channels + channel];
    } else if (channel < p.channels && end > begin) {
#pragma unroll 4
      for (int64_t unit = first + group; unit <= last; unit += kGroups) {
        sum += s.parts[(2 * unit + (unit == first)) * p.channels + channel];
      }
    }
    __syncthreads();
    parts[group][lane] = sum;
    __syncthreads();
    if (group != 0 || channel >= p.channels) continue;
    for (int other = 1; other < kGroups; ++other) sum += parts[other][lane];
    epilogue.sum(label, channel, sum, end - begin);
  }
}

// Each pixel of the features' gradient takes the row of its label, or zeros. Lanes run along pixels, or along channels
// if these are neighbors in memory.
template <typename T>
__global__ void __launch_bounds__(kSpreadThreads) spread_kernel(LabelSumsParams<T> p, int chunks) {
  const int64_t tile = blockIdx.x / chunks, begin = tile * kSpreadThreads,
                channel = int64_t(blockIdx.x % chunks) * kWarp;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int width = p.channels - channel < kWarp ? static_cast<int>(p.channels - channel) : kWarp;
  const auto row_of = [&](int64_t n) -> const T* {
    const uint32_t key = key_at(p, static_cast<uint32_t>(n));
    return key < p.classes ? p.sums + key * p.sums_row + channel * p.sums_column : nullptr;
  };
  with_storage<T>(p.features, [&](auto* grad) {
    const auto place = [&](int64_t n) {
      const Pixel at = pixel_at(p, static_cast<uint32_t>(n));
      return grad + p.features.offset(at.image, channel, at.y, at.x);
    };
    if (p.features.k == 1) {
      if (lane >= width) return;
#pragma unroll 4
      for (int i = 0; i < kWarp; ++i) {
        const int64_t n = begin + warp * kWarp + i;
        if (n >= p.pixels()) return;
        const T* const row = row_of(n);
        narrow(row ? row[lane * p.sums_column] : T(0), place(n)[lane]);
      }
      return;
    }
    const int64_t n = begin + threadIdx.x;
    if (n >= p.pixels()) return;
    const T* const row = row_of(n);
    auto* const to = place(n);
#pragma unroll 8
    for (int c = 0; c < width; ++c) narrow(row ? row[c * p.sums_column] : T(0), to[c * p.features.k]);
  });
}

// make_epilogue(p), once p is complete; p.sums is scratch if the epilogue has a use for whole sums.
template <typename T, typename Device, typename F>
void label_sums_fwd(Device& device, LabelSumsParams<T> p, bool marks, const F& make_epilogue) {
  const int64_t N = p.pixels(), tiles = ceil_div(N, kSortTile);
  int bits = 1;  // of the largest key, K
  while (p.classes >> bits > 0) ++bits;
  const int passes = static_cast<int>(ceil_div(bits, kDigit)), each = static_cast<int>(ceil_div(bits, passes));
  Entry* buffers[2] = {device.template scratch<Entry>(N), passes > 1 ? device.template scratch<Entry>(N) : nullptr};
  const int64_t units = ceil_div(N, kSumRun), chunks = std::max<int64_t>(ceil_div(p.channels, kWarp), 1);
  const int64_t zeros = 2 * p.classes + (marks ? p.batch : 0);
  auto* const bounds = device.template scratch<uint32_t>(zeros);
  if (marks) p.out_of_range = bounds + 2 * p.classes;
  SortPass pass{nullptr, nullptr, device.template scratch<unsigned>(tiles << each), 0, each, static_cast<int>(tiles),
                bounds,  zeros};
  for (int i = 0; i < passes && N > 0; ++i, pass.shift += each) {
    pass.to = buffers[i % 2];
    device.launch(count_digits_kernel<T>, tiles, kSortThreads, 0, p, pass);
    device.launch(scan_kernel<kScanThreads>, 1, kScanThreads, 0, pass.counts, tiles << each);
    const int64_t smem = ((kSortThreads << each) + 2 * kSortThreads) * sizeof(uint16_t);
    device.launch(sort_kernel<T>, tiles, kSortThreads, smem, p, pass);
    pass.from = pass.to;
    pass.zero_count = 0;
  }
  SumScratch<T> s{pass.from, bounds, device.template scratch<T>(2 * units * p.channels)};
  constexpr int64_t kEach = kWarp * (kWarp + 1) * sizeof(T) + kWarp * (sizeof(int64_t) + sizeof(uint32_t));
  if (N > 0) {
    device.launch(add_kernel<T>, ceil_div(units, kSumWarps) * chunks, kSumThreads, kSumWarps * kEach, p, s,
                  static_cast<int>(chunks));
  } else {
    device.clear(bounds, zeros * sizeof(uint32_t));
  }
  const auto epilogue = make_epilogue(p);
  if (p.classes > 0) device.launch(join_kernel<T, std::decay_t<decltype(epilogue)>>, p.classes, 256, 0, p, s, epilogue);
}

template <typename T, typename Device>
void label_sums_fwd(Device& device, const LabelSumsParams<T>& p) {
  label_sums_fwd(device, p, false, [](const LabelSumsParams<T>& q) { return KeptSums<T>{q}; });
}

template <typename T, typename Device>
void label_sums_bwd(Device& device, const LabelSumsParams<T>& p) {
  const int64_t chunks = ceil_div(p.channels, kWarp), blocks = ceil_div(p.pixels(), kSpreadThreads) * chunks;
  if (blocks > 0) device.launch(spread_kernel<T>, blocks, kSpreadThreads, 0, p, static_cast<int>(chunks));
}

}  // namespace metricseg
