// Small kernels with a fault each, and without it, to show that the shim finds what it is for; and products by the
// stand-ins for tensor cores.
#include "shim.h"  // before the kernels: it gives their words a meaning

#include <map>
#include <string>

#include "../../../csrc/common/cuda/reduce.cuh"
#include "../../../csrc/common/cuda/vec.cuh"
#include "tensor_cores.h"

using namespace metricseg;

namespace {

constexpr unsigned kThreads = 64;

unsigned lane() { return threadIdx.x % kWarp; }

// --- within a block ---

template <bool right>
__global__ void missing_barrier(const float* in, float* out) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = in[threadIdx.x];
  if (right) __syncthreads();
  out[threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

template <bool right>
__global__ void write_after_read(const float* in, float* out) {
  float* const values = shared_memory<float>();
  values[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const float other = values[kThreads - 1 - threadIdx.x];
  if (right) __syncthreads();
  values[threadIdx.x] = other;
  out[threadIdx.x] = other;
}

// Both warps read what a thread of the second writes; and two lanes of a warp what one of them writes.
template <bool right>
__global__ void write_after_two_warps_read(const float* in, float* out) {
  __shared__ float value;
  if (threadIdx.x == 0) value = in[0];
  __syncthreads();
  out[threadIdx.x] = threadIdx.x % kWarp == 5 ? value : 0;
  if (right) __syncthreads();
  if (threadIdx.x == kWarp + 5) value = 0;
}

template <bool right>
__global__ void write_after_two_lanes_read(const float* in, float* out) {
  __shared__ float value;
  if (threadIdx.x == 0) value = in[0];
  __syncthreads();
  out[threadIdx.x] = threadIdx.x < 2 ? value : 0;
  right ? __syncwarp() : (void)__all_sync(kFullMask, true);
  if (threadIdx.x == 0) value = 0;
}

template <bool right>
__global__ void read_beside_atomics(const float* in, float* out) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  if (right) __syncthreads();
  out[threadIdx.x] = in[0] + count;
}

template <bool right>
__global__ void divergent_barrier(const float* in, float* out) {
  if (right || threadIdx.x < 48) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

template <bool right>
__global__ void barrier_in_each_branch(const float* in, float* out) {
  if (right || threadIdx.x < kWarp) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = in[threadIdx.x];
}

// --- between blocks ---

template <bool right>
__global__ void two_blocks_write(const float* in, float* out) {
  const unsigned at = (right ? blockIdx.x : 0) * blockDim.x + threadIdx.x;
  out[at] = in[at];
}

template <bool right>
__global__ void two_blocks_read_and_write(const float* in, float* out) {
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  out[at] = in[at] + (right ? in : out)[threadIdx.x];
}

// Every block reads what the last writes.
template <bool right>
__global__ void write_after_another_block_read(const float* in, float* out) {
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  out[at] = in[at] + in[0];
  __syncthreads();
  if (!right && at == 2 * kThreads - 1) const_cast<float*>(in)[0] = 0;
}

// --- within a warp ---

__global__ void shuffles(const float* in, float* out) {
  const float own = in[threadIdx.x];
  out[threadIdx.x] = __shfl_up_sync(kFullMask, own, 2);
  out[threadIdx.x + kThreads] = __shfl_down_sync(kFullMask, own, 2, 8);
  out[threadIdx.x + 2 * kThreads] = __shfl_sync(kFullMask, own, 9, 8);
  out[threadIdx.x + 3 * kThreads] = __shfl_xor_sync(kFullMask, own, 9, 8);
}

template <bool right>
__global__ void a_lane_leaves(const float* in, float* out) {
  out[threadIdx.x] = 0;
  if (lane() == 5 || (right && lane() == 4)) return;
  out[threadIdx.x] = __shfl_xor_sync(right ? ~0x30u : kFullMask, in[threadIdx.x], 1);
}

template <bool right>
__global__ void a_lane_without_name(const float* in, float* out) {
  out[threadIdx.x] = 0;
  if (lane() < 16 || !right) out[threadIdx.x] = __ballot_sync(0xffff, in[threadIdx.x] > 0);
}

template <bool right>
__global__ void two_kinds_of_call(const float* in, float* out) {
  const bool odd = lane() % 2;
  const unsigned mask = right ? odd ? 0xaaaaaaaa : 0x55555555 : kFullMask;
  out[threadIdx.x] = odd ? __shfl_xor_sync(mask, in[threadIdx.x], 2) : float(__any_sync(mask, in[threadIdx.x] > 0));
}

template <bool right>
__global__ void shuffle_from_outside(const float* in, float* out) {
  out[threadIdx.x] = lane() < 16 ? __shfl_sync(0xffff, in[threadIdx.x], right ? 15 : 16) : 0;
}

// A shuffle orders nothing.
template <bool right>
__global__ void missing_syncwarp(const float* in, float* out) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = __shfl_xor_sync(kFullMask, in[threadIdx.x], 1);
  right ? __syncwarp() : (void)__all_sync(kFullMask, true);
  out[threadIdx.x] = values[threadIdx.x ^ 1];
}

template <bool right>
__global__ void syncwarp_between_warps(const float* in, float* out) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = values[threadIdx.x ^ (right ? 16 : kWarp)];
}

template <bool right>
__global__ void syncwarp_of_halves(const float* in, float* out) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = in[threadIdx.x];
  __syncwarp(lane() < 16 ? 0xffff : 0xffff0000);
  out[threadIdx.x] = values[threadIdx.x ^ (right ? 8 : 16)];
}

template <bool right>
__global__ void syncwarp_before_a_write(const float* in, float* out) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  const float other = values[threadIdx.x ^ 1];
  if (right) __syncwarp();
  values[threadIdx.x] = out[threadIdx.x] = other;
}

// --- asynchronous copies ---

enum class Slip { none, no_wait, too_few, no_barrier, other_thread, overwritten, source };

template <Slip slip>
__global__ void copies(const float* in, float* out) {
  float* const values = shared_memory<float>();
  float* const own = values + 4 * threadIdx.x;
  copy_async(own, in + 4 * threadIdx.x);
  commit_copies();
  copy_async(own + 4 * kThreads, in + 4 * threadIdx.x, 8);
  commit_copies();
  if (slip == Slip::overwritten) own[0] = 1;
  if (slip == Slip::source) const_cast<float*>(in)[4 * threadIdx.x] += 1;
  if (slip != Slip::no_wait) wait_copies<slip == Slip::too_few>();
  if (slip == Slip::other_thread) __syncwarp();
  if (slip == Slip::none) __syncthreads();
  const unsigned other = slip >= Slip::no_barrier && slip <= Slip::other_thread ? threadIdx.x ^ kWarp : threadIdx.x;
  for (int i = 0; i < 4; ++i) {
    out[4 * threadIdx.x + i] = values[4 * other + i] + values[4 * (other + kThreads) + i];
  }
}

// --- alignment ---

template <bool right>
__global__ void misaligned_copy(const float* in, float* out) {
  copy_async(shared_memory<float>() + 4 * threadIdx.x, in + (right ? 4 : 5) * threadIdx.x);
  wait_copies<0>();
  out[threadIdx.x] = 0;
}

template <bool right>
__global__ void misaligned_matrix(const float* in, float* out) {
  float* const values = shared_memory<float>();
  for (unsigned i = threadIdx.x; i < 5 * kThreads; i += kThreads) values[i] = in[i];
  __syncthreads();
  uint32_t words[4];
  load_matrices(words, values + (right ? 4 : 5) * threadIdx.x);
  out[threadIdx.x] = bit_copy<float>(words[0]);
}

template <bool right>
__global__ void misaligned_vector(const float* in, float* out) {
  const auto whole = *reinterpret_cast<const Vec<float>*>(in + (right ? 4 : 5) * threadIdx.x);
  out[threadIdx.x] = whole.values[0] + whole.values[3];
}

template <bool right>
__global__ void misaligned_store(const float* in, float* out) {
  const Vec<float> whole{{in[0], in[1], in[2], in[3]}};
  *reinterpret_cast<Vec<float>*>(out + (right ? 4 : 5) * threadIdx.x) = whole;
}

// Found by the hook of -fsanitize=thread alone.
template <bool right>
__attribute__((no_sanitize("alignment"))) __global__ void misaligned_value(const float* in, float* out) {
  const auto* const values = reinterpret_cast<const double*>(in + (right ? 2 : 1));
  out[threadIdx.x] = static_cast<float>(values[threadIdx.x]);
}

// --- addresses, of memory that lived through a barrier: found by address sanitizer ---

template <bool right>
__global__ void past_shared_memory(const float* in, float* out) {
  float* const values = shared_memory<float>();
  values[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x + (right ? 0 : 7 * kThreads + 1)];
}

template <bool right>
__global__ void past_an_array(const float* in, float* out) {
  float values[4] = {in[0], in[1], in[2], in[3]};
  __syncthreads();
  out[threadIdx.x] = values[(right ? 3 : 4) * gridDim.x];
}

__global__ void nothing(float*) {}

// --- products ---

// A [16, k] B [k, 16] of one warp: rows of A are 32 bytes, as are those of B^T [16, k], or of B [16, 16] if transposed.
template <typename T, bool transposed>
__global__ void product(const T* a, const T* b, float* c) {
  constexpr unsigned kChunk = 16 / sizeof(T), kRow = 2 * kChunk;
  T *const left = shared_memory<T>(), *const right = left + 16 * kRow;
  copy_async(left + kChunk * lane(), a + kChunk * lane());
  copy_async(right + kChunk * lane(), b + kChunk * lane());
  commit_copies();
  wait_copies<0>();
  __syncwarp();
  const unsigned row = lane() % 8, lower = lane() / 8 % 2, half = lane() / 16;
  uint32_t of_a[4], of_b[4];
  load_matrices(of_a, left + (row + 8 * lower) * kRow + kChunk * half);
  if constexpr (transposed) {
    load_transposed(of_b, right + (row + 8 * lower) * kRow + kChunk * half);
  } else {
    load_matrices(of_b, right + (row + 8 * half) * kRow + kChunk * lower);
  }
  for (unsigned n = 0; n < 2; ++n) {
    float sums[4] = {};
    multiply_add(sums, of_a, of_b[2 * n], of_b[2 * n + 1], T());
    for (unsigned i = 0; i < 4; ++i) c[(lane() / 4 + i / 2 * 8) * 16 + 8 * n + lane() % 4 * 2 + i % 2] = sums[i];
  }
}

struct Planted {
  void (*kernel)(const float*, float*);
  int blocks = 1;
};

#define PLANT(name, ...)                           \
  {#name "_right", {name<true>, ##__VA_ARGS__}}, { \
    #name "_wrong", { name<false>, ##__VA_ARGS__ } \
  }

const std::map<std::string, Planted> planted = {
    PLANT(missing_barrier),
    PLANT(write_after_read),
    PLANT(write_after_two_warps_read),
    PLANT(write_after_two_lanes_read),
    PLANT(read_beside_atomics),
    PLANT(divergent_barrier),
    PLANT(barrier_in_each_branch),
    PLANT(two_blocks_write, 2),
    PLANT(two_blocks_read_and_write, 2),
    PLANT(write_after_another_block_read, 2),
    {"shuffles", {shuffles}},
    PLANT(a_lane_leaves),
    PLANT(a_lane_without_name),
    PLANT(two_kinds_of_call),
    PLANT(shuffle_from_outside),
    PLANT(missing_syncwarp),
    PLANT(syncwarp_between_warps),
    PLANT(syncwarp_of_halves),
    PLANT(syncwarp_before_a_write),
    PLANT(misaligned_copy),
    PLANT(misaligned_matrix),
    PLANT(misaligned_vector),
    PLANT(misaligned_store),
    PLANT(misaligned_value),
    PLANT(past_shared_memory),
    PLANT(past_an_array),
    {"copies_right", {copies<Slip::none>}},
    {"copies_no_wait", {copies<Slip::no_wait>}},
    {"copies_too_few", {copies<Slip::too_few>}},
    {"copies_no_barrier", {copies<Slip::no_barrier>}},
    {"copies_other_thread", {copies<Slip::other_thread>}},
    {"copies_overwritten", {copies<Slip::overwritten>}},
    {"copies_source", {copies<Slip::source>}},
};

template <typename T, bool transposed>
void run_product(const void* a, const void* b, float* c) {
  cuda_host::launch(product<T, transposed>, 1, kWarp, 1024, static_cast<const T*>(a), static_cast<const T*>(b), c);
}
const std::map<std::string, void (*)(const void*, const void*, float*)> products = {
    {"bf16", run_product<__nv_bfloat16, false>}, {"bf16_transposed", run_product<__nv_bfloat16, true>},
    {"f16", run_product<__half, false>},         {"f16_transposed", run_product<__half, true>},
    {"tf32", run_product<float, false>},
};

// What f() throws; empty if nothing.
template <typename F>
const char* error_of(const F& f) {
  static std::string error;
  error.clear();
  try {
    f();
  } catch (const std::exception& e) {
    error = e.what();
  }
  return error.c_str();
}

}  // namespace

#define METRICSEG_EXPORT extern "C" __attribute__((visibility("default")))

METRICSEG_EXPORT const char* run_planted(const char* name, unsigned seed, float* in, float* out, int64_t count) {
  cuda_host::seed = seed;
  cuda_host::random.seed(seed);
  cuda_host::arrays.clear();
  cuda_host::remember(in, count * sizeof(float), "in");
  cuda_host::remember(out, count * sizeof(float), "out");
  const Planted& p = planted.at(name);
  return error_of(
      [&] { cuda_host::launch(p.kernel, p.blocks, kThreads, 8 * kThreads * sizeof(float), (const float*)in, out); });
}

METRICSEG_EXPORT const char* launch_nothing(unsigned x, unsigned y, unsigned z, int threads, int64_t smem,
                                            int64_t asked) {
  cuda_host::opted_in.clear();
  if (asked > 0) cuda_host::opted_in[reinterpret_cast<const void*>(&nothing)] = asked;
  return error_of([&] { cuda_host::launch(nothing, dim3{x, y, z}, threads, smem, static_cast<float*>(nullptr)); });
}

METRICSEG_EXPORT const char* run_product(const char* name, const void* a, const void* b, float* c) {
  return error_of([&] { products.at(name)(a, b, c); });
}
