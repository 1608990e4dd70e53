// The CUDA kernels of the focal family behind numpy arrays: the same launches as csrc/focal/cuda.cu, run by the shim.
#include "host.h"

#include "../../../csrc/focal/arguments.h"
#include "../../../csrc/focal/run.cuh"

using namespace metricseg;
using namespace metricseg::focal;

template <bool softmax>
static void run(const Arguments<py::array>& a) {
  HostDevice device;
  a.dispatch([&](auto zero) {
    const auto params = make_params<decltype(zero)>(a);
    softmax ? softmax_focal(device, params) : sigmoid_focal(device, params);
  });
}

static void kth_largest_kernel(const py::array& values, int64_t k, double most, const py::array& result) {
  HostDevice device;
  dispatch_accumulator(type_of(values), [&](auto zero) {
    using T = decltype(zero);
    kth_largest(device, data_of<T>(values), values.size(), k, static_cast<T>(most), data_of<T>(result));
  });
}

// The geometry of a softmax walk over contiguous logits: rows and columns of cells in a tile, blocks that are resident
// at a time, the chunks of label columns that each column of tiles takes, and whether there is memory for several.
static py::tuple walk_geometry(int64_t batch, int classes, int64_t h, int64_t w, int64_t H, int64_t W, bool grad) {
  Params<float> p{};
  p.batch = batch;
  p.classes = classes;
  p.y = Axis::make(h, H, false);
  p.x = Axis::make(w, W, false);
  float any;
  const int64_t strides[] = {classes * h * w, h * w, w, 1};
  p.input = make_map(&any, Type::f32, 4, [&](int64_t i) { return strides[i]; });
  if (grad) p.grad = p.input;
  const LaunchConfig config = make_launch_config<float>(p, kSoftmaxTraits<float>, limits_of_device);
  std::vector<int> chunks;
  for (int t = 0; t < config.tiles_x; ++t) {
    const Tile tile = tile_at(config, p.y, p.x, t);
    Chunk chunk = first_chunk(config, p.x, tile);
    for (chunks.push_back(1); chunk.x1 < chunk.x_end; ++chunks.back()) chunk = next_chunk(config, p.x, tile, chunk);
  }
  const int resident = resident_blocks<float>(config.kt, grad) * limits_of_device.multiprocessors;
  return py::make_tuple(config.tile_y, config.tile_x, resident, chunks, config.chunked);
}

PYBIND11_MODULE(focal, m) {
  define_switches(m);
  m.def("walk_geometry", walk_geometry);
  m.def("focal_kernel", focal_kernel<py::array, run<true>>);
  m.def("sigmoid_focal_kernel", sigmoid_focal_kernel<py::array, run<false>>);
  m.def("kth_largest_kernel", kth_largest_kernel);
}
