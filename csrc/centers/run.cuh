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
    f(Bf16());
  } else if (type == Type::f32 && exact) {
    f(Exact<float>());
  } else {
    f(Tf32());
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
  RowsParams<T> r{rows,   image_stride, row_stride, column_stride, p.row_count, p.depth, padded, p.padded_depth,
                  images * padded * p.padded_depth};
  auto* const operands = device.template scratch<typename Kind::Operand>(r.count);
  if (r.count > 0) {
    device.launch(rows_kernel<Kind>, ceil_div(r.count, kProductThreads), kProductThreads, 0, r, operands);
  }
  p.rows = operands;
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

// to [groups, K, C] = A X^T over the images of each group
template <typename Kind, typename T, typename Device>
void sum_pixels(Device& device, const View& a, const View& x, int64_t batch, int64_t groups, int64_t classes,
                int64_t channels, T* to) {
  if (groups * channels == 0) return;
  const RowBlocks blocks = make_row_blocks<Kind>(classes);
  const int64_t count = classes * channels;
  SumsParams<T> p{a, x, batch / groups, classes, channels, blocks.rows, blocks.blocks, 0, 0, 0, nullptr};
  p.chunks = static_cast<int>(ceil_div(channels, kChannels));
  dispatch_rows<Kind>(blocks, [&](auto mt) {
    using Tile = SumsTile<Kind, decltype(mt)::value>;
    p.tiles = static_cast<int>(ceil_div(x.pixels, Tile::kDepth));
    const int64_t all = p.images * p.tiles, others = int64_t(p.blocks) * p.chunks * groups;
    if (all == 0) return device.clear(to, groups * count * sizeof(T));
    const int64_t wanted = ceil_div(2 * Tile::kBlocks * device.limits().multiprocessors, others);
    p.parts = static_cast<int>(std::max<int64_t>(std::min(wanted, all), 1));
    p.out = p.parts == 1 ? to : device.template scratch<T>(groups * p.parts * count);
    device.launch(sums_kernel<Kind, decltype(mt)::value>, others * p.parts, kProductThreads, Tile::kSmem, p);
    if (p.parts > 1) join_parts(device, p.out, groups, p.parts, count, to);
  });
}

// A [B, K, h w] operands in scratch, rows of whole vectors; p is completed.
template <typename Kind, typename T, typename Device>
View allocate_a(Device& device, WeighParams<T>& p) {
  using Operand = typename Kind::Operand;
  constexpr int64_t kEach = 16 / sizeof(Operand);
  p.stride = ceil_div(p.from.pixels, kEach) * kEach;
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
void spread(Device& device, const View& a, const View& features, const View& out, const T* along, int64_t batch,
            int64_t channels, int64_t classes, const T* rows, int64_t images) {
  ProjectParams<T> p{};
  p.epilogue = Epilogue::spread;
  p.x = a;
  p.depth = classes;
  p.row_count = channels;
  p.out = out;
  if (along) p.input = features;
  p.along = along;
  project<Kind>(device, p, batch, rows, images, classes * channels, 1, channels);
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
    WeighParams<T> w{};
    w.from = make_view(s.grad_logits, s.batch, s.classes, s.height, s.width);
    w.batch = s.batch;
    w.classes = s.classes;
    w.tiles = static_cast<int>(ceil_div(s.pixels(), kPixels));
    w.norms = s.norms;
    w.square = s.square;
    w.eps = s.eps;
    if (s.grad_target_similarity) {
      w.labels = s.labels;
      w.ignore_index = s.ignore_index;
      w.grad_target = make_view(s.grad_target_similarity, s.batch, 1, s.height, s.width);
      w.target_similarity = s.target_similarity;
    }
    if (spreads && (s.cosine || s.square != T(0))) {
      w.along = device.template scratch<T>(s.batch * s.pixels());
      if (s.cosine) w.logits = s.logits;
    }
    const View a = allocate_a<Kind>(device, w);
    device.launch(weigh_gradient_kernel<Kind>, s.batch * w.tiles, kProductThreads, 0, w);
    if (s.grad_weights) {
      sum_pixels<Kind>(device, a, features, s.batch, groups, s.classes, s.channels, s.grad_weights);
    }
    if (!spreads) return;
    if (w.labels) {
      device.launch(add_own_kernel<Kind>, ceil_div(s.batch * s.pixels(), kProductThreads), kProductThreads, 0, w);
    }
    const View out = make_view(s.grad_features, s.batch, s.channels, s.height, s.width);
    spread<Kind>(device, a, features, out, w.along, s.batch, s.channels, s.classes, s.weights, s.weight_images);
  });
}

template <typename T>
WeighParams<T> make_soft(const SoftSumsParams<T>& s) {
  WeighParams<T> w{};
  w.from = make_view(s.logits, s.batch, s.classes, s.height, s.width);
  w.batch = s.batch;
  w.classes = s.classes;
  w.tiles = static_cast<int>(ceil_div(s.pixels(), kPixels));
  return w;
}

template <typename T, typename Device>
void soft_sums_fwd(Device& device, const SoftSumsParams<T>& s) {
  if (s.batch * s.pixels() == 0) {
    device.clear(s.sums, s.batch * s.classes * s.channels * sizeof(T));
    return device.clear(s.mass, s.batch * s.classes * sizeof(T));
  }
  dispatch_kind<T>(s.features.type, s.exact, [&](auto kind) {
    using Kind = decltype(kind);
    WeighParams<T> w = make_soft(s);
    w.lse = device.template scratch<T>(s.batch * s.pixels());
    w.mass = device.template scratch<T>(s.batch * w.tiles * s.classes);
    const View a = allocate_a<Kind>(device, w);
    device.launch(weigh_soft_kernel<Kind>, s.batch * w.tiles, kProductThreads, 0, w);
    join_parts(device, w.mass, s.batch, w.tiles, s.classes, s.mass);
    const View features = make_view(s.features, s.batch, s.channels, s.height, s.width);
    sum_pixels<Kind>(device, a, features, s.batch, s.batch, s.classes, s.channels, s.sums);
  });
}

template <typename T, typename Device>
void soft_sums_bwd(Device& device, const SoftSumsParams<T>& s) {
  const bool spreads = s.grad_features && s.channels > 0;
  if (s.batch * s.pixels() == 0 || (!spreads && !s.grad_logits)) return;
  dispatch_kind<T>(s.features.type, s.exact, [&](auto kind) {
    using Kind = decltype(kind);
    WeighParams<T> w = make_soft(s);
    w.lse = device.template scratch<T>(s.batch * s.pixels());
    const View a = spreads ? allocate_a<Kind>(device, w) : View{};
    device.launch(weigh_soft_kernel<Kind>, s.batch * w.tiles, kProductThreads, 0, w);
    if (spreads) {
      const View out = make_view(s.grad_features, s.batch, s.channels, s.height, s.width);
      spread<Kind>(device, a, View{}, out, static_cast<const T*>(nullptr), s.batch, s.channels, s.classes, s.sums,
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
    p.grad_mass = s.mass;
    project<Kind>(device, p, s.batch, s.sums, s.batch, s.classes * s.channels, s.channels, 1);
  });
}

}  // namespace metricseg::centers
