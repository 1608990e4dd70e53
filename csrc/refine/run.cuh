// Launch sequence of each op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count), clear(pointer, bytes).
#pragma once

#include <algorithm>

#include "gather.cuh"
#include "spread.cuh"
#include "weigh.cuh"

namespace metricseg::refine {

template <typename T, typename Device>
void refine_fwd(Device& device, const RefineParams<T>& p) {
  if (p.batch * p.channels * p.pixels() == 0) return;
  const Tiling t = make_tiling(p.y.labels, p.x.labels, kPixels, kTileColumns);
  device.launch(upsample_kernel<T>, p.batch * t.tiles(), kThreads, kPixels * sizeof(Located<T>), p, t, make_lanes(p));
}

template <typename T, typename Device>
void spread_gradient(Device& device, const RefineParams<T>& p) {
  SpreadScratch<T> s{};
  s.tiling = make_tiling(p.y.labels, p.x.labels, kPlaceThreads, kPlaceColumns);
  const int64_t tiles = p.batch * s.tiling.tiles(), bands = p.batch * s.tiling.tile_rows;
  s.places = device.template scratch<Place<T>>(tiles * kPlaceThreads);
  s.tiles = device.template scratch<Bounds>(tiles);
  s.bands = device.template scratch<Bounds>(bands);
  device.clear(s.bands, bands * sizeof(Bounds));
  device.launch(place_kernel<T>, tiles, kPlaceThreads, 0, p, s);
  const int64_t units = ceil_div(p.channels, kWarp * kEach<T>), warps = std::min<int64_t>(units, kSpreadWarps);
  const int64_t rows = ceil_div(p.y.cells, kCellRows), columns = ceil_div(p.x.cells, kCellColumns);
  const int64_t chunks = ceil_div(units, warps);
  device.launch(spread_kernel<T>, p.batch * rows * columns * chunks, static_cast<int>(warps * kWarp),
                spread_smem<T>(static_cast<int>(warps)), p, s, static_cast<int>(rows), static_cast<int>(columns),
                static_cast<int>(chunks));
}

template <typename T, typename Device>
void refine_bwd(Device& device, const RefineParams<T>& p) {
  if (p.batch * p.channels * p.pixels() == 0) return;  // the caller fills with zeros
  if (p.grad_features) spread_gradient(device, p);
  if (!p.grad_offsets && !p.grad_neighbor_logits) return;
  T* const slopes = device.template scratch<T>(p.batch * 2 * p.pixels());
  const Tiling t = make_tiling(p.y.labels, p.x.labels, kPixels, kTileColumns);
  const int64_t smem = kPixels * sizeof(Located<T>) + kThreads * sizeof(Point<T>);
  device.launch(slope_kernel<T>, p.batch * t.tiles(), kThreads, smem, p, t, make_lanes(p), slopes);
  const Tiling w = make_tiling(p.y.labels, p.x.labels, kWeighThreads, kWeighColumns);
  device.launch(weigh_kernel<T>, p.batch * w.tiles(), kWeighThreads, weighed_pixels(w) * sizeof(Weighed<T>), p, w,
                slopes);
}

}  // namespace metricseg::refine
