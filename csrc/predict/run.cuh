// Launch sequence of each op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), clear(pointer, bytes), limits().
#pragma once

#include <algorithm>

#include "average.cuh"
#include "best_logit.cuh"
#include "two_walks.cuh"

namespace metricseg::predict {

constexpr int64_t kCountBytes = 48 << 10;  // at most, of counts in shared memory
constexpr int64_t kCountingBlocks = 16;    // of a multiprocessor: each adds its counts to those of all
constexpr int64_t kMostBlocks = int64_t(1) << 30;
constexpr int64_t kMaskBytes = 32 << 10;   // at most, of classes that can win
constexpr int64_t kStageBytes = 96 << 10;  // at most, of the cells of a tile: two blocks to a multiprocessor

template <typename Device>
struct Launcher {
  Device& device;
  const CudaParams& p;

  // smem: bytes of the kernel itself
  template <typename... Parameters, typename... Arguments>
  void operator()(void (*kernel)(CudaParams, Tiles, Parameters...), int threads, int64_t across, int64_t down,
                  int64_t smem, Arguments... arguments) const {
    Tiles tiles{across, down, p.batch * across * down, -1};
    const int64_t counted = int64_t{p.classes} * p.classes * sizeof(unsigned);
    smem = ceil_div(smem, 16) * 16;
    if (p.counts && counted <= kCountBytes && smem + counted <= device.limits().smem) {
      tiles.shared_at = smem;
      smem += counted;
    }
    const int64_t most = p.counts ? kCountingBlocks * device.limits().multiprocessors : kMostBlocks;
    device.launch(kernel, std::min(tiles.all, most), threads, smem, p, tiles, arguments...);
  }
};

template <typename T, typename Device>
void best_logit(const Launcher<Device>& launch, const CudaParams& p) {
  const Fields x{p.x(0)}, y{p.y(0)};
  const int64_t masks = kTileFields * sizeof(int) * (1 + ceil_div(p.classes, kBits));
  const bool fields = 2 * x.axis.cells <= x.axis.labels && 2 * y.axis.cells <= y.axis.labels;
  if (!fields || masks > kMaskBytes)
    return launch(best_logit_kernel<T>, kThreads, ceil_div(p.width, kThreads), p.height, 0);
  const int64_t across = ceil_div(x.count(), kAcross), down = ceil_div(y.count(), kDown);
  if constexpr (sizeof(T) == sizeof(float)) {  // 8 rows in fp64 take too many registers
    if (8 * y.axis.cells <= y.axis.labels) return launch(pruned_kernel<T, 8>, kThreads, across, down, masks);
  }
  launch(pruned_kernel<T, 4>, kThreads, across, down, masks);
}

// Threads that hold the classes of a pixel, `held` each: a power of two.
inline int lanes_of(int classes, int held) {
  int lanes = 1;
  while (lanes * held < classes) lanes *= 2;
  return lanes;
}

// The stage of averaging_kernel<T, held>.
template <typename T>
Stage make_stage(const CudaParams& p, int held) {
  const int lanes = lanes_of(p.classes, held);
  Stage stage{};
  stage.columns = kWarp / lanes;
  stage.stride = lanes * held + 2;  // neighboring cells in other banks
  for (int m = 0; m < p.maps; ++m) {
    const auto most = [](const Axis& axis, int64_t labels) {
      return static_cast<int>(std::min(axis.cells, (labels - 1) * axis.mul / axis.den + 3));
    };
    stage.rows = std::max(stage.rows, most(p.y(m), kAverageRows));
    stage.cells = std::max(stage.cells, most(p.x(m), stage.tile_columns()));
  }
  const auto aligned = [](int64_t bytes) { return static_cast<int>(ceil_div(bytes, 16) * 16); };
  stage.rows_at = aligned(p.maps * sizeof(Window));
  stage.columns_at = aligned(stage.rows_at + p.maps * kAverageRows * sizeof(Staged<T>));
  stage.cells_at = aligned(stage.columns_at + p.maps * stage.tile_columns() * sizeof(Staged<T>));
  return stage;
}

// Classes that a thread of averaging_kernel holds: of those that there are kernels for, the number with the least padding;
// 0 if there are too many classes, or too many cells for the stage.
template <typename T>
int held_classes(const CudaParams& p, Stage& stage) {
  int held = 0, least = std::numeric_limits<int>::max();
  for (const int candidate : {10, 6, 4}) {
    const int lanes = lanes_of(p.classes, candidate);
    if ((sizeof(T) == sizeof(double) && candidate > 4) || lanes > kWarp || lanes * candidate >= least) continue;
    least = lanes * candidate;
    held = candidate;
  }
  if (p.maps == 1 || held == 0) return 0;
  stage = make_stage<T>(p, held);
  return int64_t{stage.values()} * sizeof(T) + stage.cells_at <= kStageBytes ? held : 0;
}

template <typename T, typename Device>
void best_probability(const Launcher<Device>& launch, const CudaParams& p) {
  Stage stage{};
  const int held = held_classes<T>(p, stage);
  const auto average = [&](auto kernel) {
    launch(kernel, kAverageThreads, ceil_div(p.width, stage.tile_columns()), ceil_div(p.height, kAverageRows),
           stage.cells_at + stage.values() * sizeof(T), stage);
  };
  if (held == 4) return average(averaging_kernel<T, 4>);
  if constexpr (sizeof(T) == sizeof(float)) {
    if (held == 6) return average(averaging_kernel<T, 6>);
    if (held == 10) return average(averaging_kernel<T, 10>);
  }
  launch(two_walk_kernel<T>, kThreads, ceil_div(p.width, kThreads), p.height,
         p.maps * (kThreads * sizeof(PixelOfMap<T>) + sizeof(RowOfMap<T>)));
}

template <typename T, typename Device>
void predict(Device& device, const CudaParams& p) {
  if (p.counts) {
    device.clear(p.counts, int64_t{p.classes} * p.classes * sizeof(int64_t));
    device.clear(p.bad, 2 * sizeof(double));
  }
  if (p.batch * p.height * p.width == 0) return;
  const Launcher<Device> launch{device, p};
  p.averages() ? best_probability<T>(launch, p) : best_logit<T>(launch, p);
}

}  // namespace metricseg::predict
