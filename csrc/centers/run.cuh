// Launch sequence of each op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count), clear(pointer, bytes), limits().
#pragma once

#include <algorithm>

#include "../engines/pixel_rows/label_sums.cuh"
#include "sums.cuh"
#include "weigh.cuh"

namespace metricseg::centers {

// f(Kind()) for maps of this type. fp16 runs as tf32, which has its mantissa: no scale of a loss, no norm and no center
// can leave the range.
template <typename T, typename F>
void dispatch_kind(Type type, bool exact, const F& f) {
  if constexpr (sizeof(T) == sizeof(double)) {
    f(Exact<double>());
  } else if (type == Type::bf16) {
    f(Half<__nv_bfloat16>());
  } else if (type == Type::f32 && exact) {
    f(Exact<float>());
  } else {
    f(Tf32<true>());
  }
}

// Blocks of M rows: as few as possible, of the same multiple of 16.
struct RowBlocks {
  int blocks, rows;
  bool wide;  // more than 32 rows: 160 at most
};

template <typename Kind>
RowBlocks make_row_blocks(int64_t rows) {
  const bool wide = rows > 32 && sizeof(typename Kind::Sum) == 4;
  const int64_t blocks = std::max<int64_t>(ceil_div(rows, wide ? 160 : 32), 1);
  return {static_cast<int>(blocks), static_cast<int>(ceil_div(ceil_div(rows, blocks), 16) * 16), wide};
}

// f(MT), a constant: 16 rows of a warp at most.
template <typename Kind, typename F>
void dispatch_rows(const RowBlocks& blocks, const F& f) {
  if constexpr (sizeof(typename Kind::Sum) == 4) {
    if (blocks.wide) return f(std::integral_constant<int, 5>());
  }
  f(std::integral_constant<int, 1>());
}

// Rows [images, M, J] as operands [images, padded M, padded J] in scratch.
template <typename Kind, typename T, typename Device>
const void* make_rows(Device& device, RowsParams<T> r, int64_t images) {
  r.count = images * r.padded_rows * r.padded_columns;
  auto* const operands = device.template scratch<typename Kind::Operand>(r.count);
  if (r.count > 0) {
    device.launch(rows_kernel<Kind>, ceil_div(r.count, kProductThreads), kProductThreads, 0, r, operands);
  }
  return operands;
}

// The product of rows [images, M, J], with these strides, and p.x.
template <typename Kind, typename T, typename Device>
void project(Device& device, ProjectParams<T> p, int64_t batch, const T* rows, int64_t images, int64_t image_stride,
             int64_t row_stride, int64_t column_stride) {
  const RowBlocks blocks = make_row_blocks<Kind>(p.row_count);
  constexpr int kDepth = ProjectTile<Kind, 1>::kDepth;
  p.padded_depth = ceil_div(p.depth, kDepth) * kDepth;
  p.blocks = blocks.blocks;
  p.block_rows = blocks.rows;
  p.tiles = static_cast<int>(ceil_div(p.x.pixels, kPixels));
  if (batch * p.tiles == 0) return;
  const int64_t padded = int64_t(p.blocks) * p.block_rows;
  p.rows = make_rows<Kind, T>(
      device, {rows, image_stride, row_stride, column_stride, p.row_count, p.depth, padded, p.padded_depth, 0}, images);
  p.row_image = images > 1 ? padded * p.padded_depth : 0;
  const auto launch = [&](Epilogue epilogue) {
    p.epilogue = epilogue;
    dispatch_rows<Kind>(blocks, [&](auto mt) {
      constexpr int kTiles = decltype(mt)::value;
      device.launch(project_kernel<Kind, kTiles>, batch * p.tiles * p.blocks, kProductThreads,
                    ProjectTile<Kind, kTiles>::kSmem, p);
    });
  };
  if (p.epilogue != Epilogue::soft || p.blocks == 1) return launch(p.epilogue);
  p.all_pixels = batch * p.x.pixels;
  p.shares = device.template scratch<T>(p.blocks * p.all_pixels);
  launch(Epilogue::soft_shares);
  launch(Epilogue::soft_of_shares);
}

// to [groups, count] from rows of sums of `parts` parts
template <typename T, typename Device>
void join_parts(Device& device, const T* from, int64_t groups, int64_t parts, int64_t count, T* to) {
  const int64_t blocks = groups * ceil_div(count, kJoined);
  if (blocks > 0) device.launch(join_parts_kernel<T>, blocks, kProductThreads, 0, from, parts, count, to);
}

// to [groups, K, C] = A X^T over the images of each group; with p.grad, T too.
template <typename Kind, int MT, bool Spreads, typename T, typename Device>
void sum_pixels(Device& device, SumsParams<T> p, int64_t groups, T* to) {
  using Tile = SumsTile<Kind, MT, Spreads>;
  p.tiles = static_cast<int>(ceil_div(p.x.pixels, Tile::kDepth));
  const int64_t all = p.images * p.tiles, others = int64_t(p.blocks) * p.chunks * groups;
  const int64_t count = p.classes * p.channels;
  const int64_t slots = int64_t(Tile::kBlocks) * device.limits().multiprocessors;
  // one wave of blocks, or four if that would not be whole: each part costs a row of sums
  const int64_t wanted = slots / others >= 4 ? slots / others : ceil_div(4 * slots, others);
  p.parts = static_cast<int>(std::max<int64_t>(std::min(wanted, all), 1));
  p.out = p.parts == 1 ? to : device.template scratch<T>(groups * p.parts * count);
  p.stages = Tile::smem(Tile::kStages) <= device.limits().smem ? Tile::kStages : 2;
  device.launch(sums_kernel<Kind, MT, Spreads>, others * p.parts, kProductThreads, Tile::smem(p.stages), p);
  if (p.parts > 1) join_parts(device, p.out, groups, p.parts, count, to);
}

template <typename Kind, typename T>
SumsParams<T> make_sums(const View& a, const View& x, int64_t batch, int64_t groups, int64_t classes,
                        int64_t channels) {
  const RowBlocks blocks = make_row_blocks<Kind>(classes);
  SumsParams<T> p{};
  p.a = a;
  p.x = x;
  p.images = batch / groups;
  p.classes = classes;
  p.channels = channels;
  p.block_rows = blocks.rows;
  p.blocks = blocks.blocks;
  p.chunks = static_cast<int>(ceil_div(channels, kChannels));
  return p;
}

template <typename Kind, typename T, typename Device>
void sum_pixels(Device& device, const SumsParams<T>& p, int64_t groups, T* to) {
  if (groups * p.channels == 0) return;
  dispatch_rows<Kind>(make_row_blocks<Kind>(p.classes),
                      [&](auto mt) { sum_pixels<Kind, decltype(mt)::value, false>(device, p, groups, to); });
}

// A [B, K, h w] operands in scratch, rows of whole vectors; p is completed.
template <typename Kind, typename T, typename Device>
View allocate_a(Device& device, WeighParams<T>& p) {
  using Operand = typename Kind::Operand;
  p.a = device.template scratch<Operand>(p.batch * p.classes * p.stride);
  View a{{}, p.from.pixels, p.from.pixels, 1, true, true, false};
  a.map.data = static_cast<char*>(p.a);
  a.map.type = kTypeOf<Operand>;
  a.map.size = sizeof(Operand);
  a.map.b = p.classes * p.stride;
  a.map.k = p.stride;
  a.map.x = 1;
  return a;
}

template <typename T, typename Device>
void similarity_fwd(Device& device, const SimilarityParams<T>& s) {
  dispatch_kind<T>(s.features.type, s.exact, [&](auto kind) {
    ProjectParams<T> p{};
    p.epilogue = Epilogue::similarity;
    p.x = make_view(s.features, s.batch, s.channels, s.height, s.width);
    p.depth = s.channels;
    p.row_count = s.classes;
    p.out = make_view(s.logits, s.batch, s.classes, s.height, s.width);
    p.bias = s.bias;
    p.bias_image = s.bias_images > 1 ? s.classes : 0;
    p.labels = s.labels;
    p.ignore_index = s.ignore_index;
    p.cosine = s.cosine;
    p.square = s.square;
    p.eps = s.eps;
    p.target_similarity = s.target_similarity;
    p.norms = s.norms;
    project<decltype(kind)>(device, p, s.batch, s.weights, s.weight_images, s.classes * s.channels, s.channels, 1);
  });
}

// Features' gradient T = W^T A, less along x.
template <typename Kind, typename T, typename Device>
void spread(Device& device, const View& a, const View& features, const View& out, const T* along, int64_t number_stride,
            int64_t batch, int64_t channels, int64_t classes, const T* rows, int64_t images) {
  ProjectParams<T> p{};
  p.epilogue = Epilogue::spread;
  p.x = a;
  p.depth = classes;
  p.row_count = channels;
  p.out = out;
  if (along) p.input = features;
  p.along = along;
  p.number_stride = number_stride;
  project<Kind>(device, p, batch, rows, images, classes * channels, 1, channels);
}

// Arguments of `weigh` that all calls share.
template <typename T>
WeighParams<T> make_weigh(const Map& from, int64_t batch, int64_t classes, int64_t height, int64_t width) {
  WeighParams<T> w{};
  w.from = make_view(from, batch, classes, height, width);
  w.batch = batch;
  w.classes = classes;
  w.tiles = static_cast<int>(ceil_div(w.from.pixels, kPixels));
  w.stride = ceil_div(w.from.pixels, 8) * 8;
  return w;
}

// S and T in one walk over the features. False if a kernel does not take it.
template <typename Kind, typename T, typename Device>
bool sum_and_spread(Device& device, const SimilarityParams<T>& s, const WeighParams<T>& w, SumsParams<T> p) {
  if constexpr (Kind::kTensorCores) {
    if (p.blocks > 1 || (p.x.lasts && !p.grad.lasts)) return false;
    bool taken = false;
    dispatch_rows<Kind>(make_row_blocks<Kind>(s.classes), [&](auto mt) {
      constexpr int kTiles = decltype(mt)::value;
      if (SumsTile<Kind, kTiles, true>::smem(2) > device.limits().smem) return;
      taken = true;
      const int64_t padded = int64_t(p.chunks) * kChannels;
      p.weights = make_rows<Kind, T>(
          device, {s.weights, s.classes * s.channels, 1, s.channels, s.channels, s.classes, padded, p.block_rows, 0},
          s.weight_images);
      p.weight_group = s.weight_images > 1 ? padded * p.block_rows : 0;
      p.along = w.along;
      p.own = w.own;
      p.own_labels = w.own_labels;
      p.number_stride = w.stride;
      sum_pixels<Kind, kTiles, true>(device, p, s.weight_images, s.grad_weights);
    });
    return taken;
  }
  return false;
}

template <typename T, typename Device>
void similarity_bwd(Device& device, const SimilarityParams<T>& s) {
  const bool spreads = s.grad_features && s.channels > 0;
  const int64_t groups = s.weight_images;
  if (s.batch * s.pixels() == 0) {
    if (s.grad_weights) device.clear(s.grad_weights, groups * s.classes * s.channels * sizeof(T));
    return;
  }
  if (s.channels == 0 || (!spreads && !s.grad_weights)) return;
  dispatch_kind<T>(s.features.type, s.exact, [&](auto kind) {
    using Kind = decltype(kind);
    const View features = make_view(s.features, s.batch, s.channels, s.height, s.width);
    WeighParams<T> w = make_weigh<T>(s.grad_logits, s.batch, s.classes, s.height, s.width);
    const int64_t numbers = w.batch * w.stride;
    w.norms = s.norms;
    w.square = s.square;
    w.eps = s.eps;
    if (s.grad_target_similarity) {
      w.labels = s.labels;
      w.ignore_index = s.ignore_index;
      w.grad_target = make_view(s.grad_target_similarity, s.batch, 1, s.height, s.width);
      w.target_similarity = s.target_similarity;
      w.own = device.template scratch<T>(numbers);
      w.own_labels = device.template scratch<int>(numbers);
    }
    if (spreads && (s.cosine || s.square != T(0))) {
      w.along = device.template scratch<T>(numbers);
      if (s.cosine) w.logits = s.logits;
    }
    const View a = allocate_a<Kind>(device, w);
    device.launch(weigh_gradient_kernel<Kind>, s.batch * w.tiles, kProductThreads, 0, w);
    SumsParams<T> p = make_sums<Kind, T>(a, features, s.batch, groups, s.classes, s.channels);
    if (spreads) p.grad = make_view(s.grad_features, s.batch, s.channels, s.height, s.width);
    if (spreads && s.grad_weights && sum_and_spread<Kind>(device, s, w, p)) return;
    if (s.grad_weights) sum_pixels<Kind>(device, p, groups, s.grad_weights);
    if (!spreads) return;
    if (w.labels) {
      device.launch(add_own_kernel<Kind>, ceil_div(s.batch * s.pixels(), kProductThreads), kProductThreads, 0, w);
    }
    spread<Kind>(device, a, features, p.grad, w.along, w.stride, s.batch, s.channels, s.classes, s.weights,
                 s.weight_images);
  });
}

template <typename T, typename Device>
void soft_sums_fwd(Device& device, const SoftSumsParams<T>& s) {
  if (s.batch * s.pixels() == 0) {
    device.clear(s.sums, s.batch * s.classes * s.channels * sizeof(T));
    return device.clear(s.mass, s.batch * s.classes * sizeof(T));
  }
  dispatch_kind<T>(s.features.type, s.exact, [&](auto kind) {
    using Kind = decltype(kind);
    WeighParams<T> w = make_weigh<T>(s.logits, s.batch, s.classes, s.height, s.width);
    w.lse = device.template scratch<T>(s.batch * w.stride);
    w.mass = device.template scratch<T>(s.batch * w.tiles * s.classes);
    const View a = allocate_a<Kind>(device, w);
    device.launch(weigh_soft_kernel<Kind>, s.batch * w.tiles, kProductThreads, 0, w);
    join_parts(device, w.mass, s.batch, w.tiles, s.classes, s.mass);
    const View features = make_view(s.features, s.batch, s.channels, s.height, s.width);
    sum_pixels<Kind>(device, make_sums<Kind, T>(a, features, s.batch, s.batch, s.classes, s.channels), s.batch, s.sums);
  });
}

template <typename T, typename Device>
void soft_sums_bwd(Device& device, const SoftSumsParams<T>& s) {
  const bool spreads = s.grad_features && s.channels > 0;
  if (s.batch * s.pixels() == 0 || (!spreads && !s.grad_logits)) return;
  dispatch_kind<T>(s.features.type, s.exact, [&](auto kind) {
    using Kind = decltype(kind);
    WeighParams<T> w = make_weigh<T>(s.logits, s.batch, s.classes, s.height, s.width);
    w.lse = device.template scratch<T>(s.batch * w.stride);
    const View a = spreads ? allocate_a<Kind>(device, w) : View{};
    device.launch(weigh_soft_kernel<Kind>, s.batch * w.tiles, kProductThreads, 0, w);
    if (spreads) {
      const View out = make_view(s.grad_features, s.batch, s.channels, s.height, s.width);
      spread<Kind>(device, a, View{}, out, static_cast<const T*>(nullptr), 0, s.batch, s.channels, s.classes, s.sums,
                   s.batch);
    }
    if (!s.grad_logits) return;
    ProjectParams<T> p{};
    p.epilogue = Epilogue::soft;
    p.x = make_view(s.features, s.batch, s.channels, s.height, s.width);
    p.depth = s.channels;
    p.row_count = s.classes;
    p.out = make_view(s.grad_logits, s.batch, s.classes, s.height, s.width);
    p.input = w.from;
    p.lse = w.lse;
    p.number_stride = w.stride;
    p.grad_mass = s.mass;
    project<Kind>(device, p, s.batch, s.sums, s.batch, s.classes * s.channels, s.channels, 1);
  });
}

}  // namespace metricseg::centers
