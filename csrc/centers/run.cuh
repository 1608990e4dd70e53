// Launch sequence of each op. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count), clear(pointer, bytes), limits().
#pragma once

#include <algorithm>

#include "pull.cuh"
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

// Rows [images, M, J] as operands [images, padded M, padded J] in scratch, which r then describes.
template <typename Kind, typename T, typename Device>
void allocate_rows(Device& device, RowsParams<T>& r, int64_t images) {
  r.count = images * r.padded_rows * r.padded_columns;
  r.to = device.template scratch<typename Kind::Operand>(r.count);
}

// The rows that the product of rows [images, M, J], with these strides, and p.x takes; p is completed.
template <typename Kind, typename T, typename Device>
RowsParams<T> plan_product(Device& device, ProjectParams<T>& p, const T* rows, int64_t images, int64_t image_stride,
                           int64_t row_stride, int64_t column_stride) {
  const RowBlocks blocks = make_row_blocks<Kind>(p.row_count);
  constexpr int kDepth = ProjectTile<Kind, 1>::kDepth;
  p.padded_depth = ceil_div(p.depth, kDepth) * kDepth;
  p.blocks = blocks.blocks;
  p.block_rows = blocks.rows;
  p.tiles = static_cast<int>(ceil_div(p.x.pixels, kPixels));
  const int64_t padded = int64_t(p.blocks) * p.block_rows;
  RowsParams<T> r{rows,   image_stride,   row_stride, column_stride, p.row_count, p.depth,
                  padded, p.padded_depth, 0,          nullptr};
  allocate_rows<Kind>(device, r, images);
  p.rows = r.to;
  p.row_image = images > 1 ? padded * p.padded_depth : 0;
  return r;
}

template <typename Kind, typename T, typename Device>
void project(Device& device, ProjectParams<T> p, int64_t batch) {
  if (batch * p.tiles == 0) return;
  const auto launch = [&](Epilogue epilogue) {
    p.epilogue = epilogue;
    dispatch_rows<Kind>(make_row_blocks<Kind>(p.row_count), [&](auto mt) {
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

// p.out [groups, p.parts, K, C]: A X^T over the parts of each group, in scratch unless `to` can take it; with p.grad, T
// too.
template <typename Kind, int MT, bool Spreads, typename T, typename Device>
void sum_parts(Device& device, SumsParams<T>& p, int64_t groups, T* to) {
  using Tile = SumsTile<Kind, MT, Spreads>;
  p.tiles = static_cast<int>(ceil_div(p.x.pixels, Tile::kDepth));
  const int64_t all = p.images * p.tiles, others = int64_t(p.blocks) * p.chunks * groups;
  const int64_t count = p.classes * p.channels;
  const int64_t slots = int64_t(Tile::kBlocks) * device.limits().multiprocessors;
  // one wave of blocks, or four if that would not be whole: each part costs a row of sums
  const int64_t wanted = slots / others >= 4 ? slots / others : ceil_div(4 * slots, others);
  p.parts = static_cast<int>(std::max<int64_t>(std::min(wanted, all), 1));
  p.out = to && p.parts == 1 ? to : device.template scratch<T>(groups * p.parts * count);
  p.stages = Tile::smem(Tile::kStages) <= device.limits().smem ? Tile::kStages : 2;
  device.launch(sums_kernel<Kind, MT, Spreads>, others * p.parts, kProductThreads, Tile::smem(p.stages), p);
}

template <typename Kind, typename T, typename Device>
void sum_parts(Device& device, SumsParams<T>& p, int64_t groups, T* to) {
  dispatch_rows<Kind>(make_row_blocks<Kind>(p.classes),
                      [&](auto mt) { sum_parts<Kind, decltype(mt)::value, false>(device, p, groups, to); });
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
    using Kind = decltype(kind);
    const RowsParams<T> rows =
        plan_product<Kind>(device, p, s.weights, s.weight_images, s.classes * s.channels, s.channels, 1);
    if (s.batch * p.tiles == 0) return;
    if (rows.count > 0) device.launch(rows_kernel<Kind>, rows.blocks(), kProductThreads, 0, rows);
    project<Kind>(device, p, s.batch);
  });
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

// The features' gradient T = W^T A; rows are W [images, K, C].
template <typename Kind, typename T, typename Device>
ProjectParams<T> plan_spread(Device& device, WeighParams<T>& w, const View& a, const View& out, int64_t channels,
                             const T* rows, int64_t images) {
  ProjectParams<T> p{};
  p.epilogue = Epilogue::spread;
  p.x = a;
  p.depth = w.classes;
  p.row_count = channels;
  p.out = out;
  w.rows[0] = plan_product<Kind>(device, p, rows, images, w.classes * channels, 1, channels);
  return p;
}

// Whether one kernel makes S and T in one walk over the features.
template <typename Kind, typename T, typename Device>
bool takes_both(Device& device, const SumsParams<T>& p) {
  bool taken = false;
  if constexpr (Kind::kTensorCores) {
    if (p.blocks > 1 || (p.x.lasts && !p.grad.lasts)) return false;
    dispatch_rows<Kind>(make_row_blocks<Kind>(p.classes), [&](auto mt) {
      taken = SumsTile<Kind, decltype(mt)::value, true>::smem(2) <= device.limits().smem;
    });
  }
  return taken;
}

// W of `sum_and_spread`; p is completed.
template <typename Kind, typename T, typename Device>
void plan_both(Device& device, const SimilarityParams<T>& s, WeighParams<T>& w, SumsParams<T>& p) {
  const int64_t padded = int64_t(p.chunks) * kChannels;
  w.rows[0] = {s.weights, s.classes * s.channels, 1, s.channels, s.channels, s.classes,
               padded,    p.block_rows,           0, nullptr};
  allocate_rows<Kind>(device, w.rows[0], s.weight_images);
  p.weights = w.rows[0].to;
  p.weight_group = s.weight_images > 1 ? padded * p.block_rows : 0;
  p.along = w.along;
  p.own = w.own;
  p.own_labels = w.own_labels;
  p.number_stride = w.stride;
}

template <typename Kind, typename T, typename Device>
void sum_and_spread(Device& device, SumsParams<T>& p, int64_t groups, T* to) {
  if constexpr (Kind::kTensorCores) {
    dispatch_rows<Kind>(make_row_blocks<Kind>(p.classes),
                        [&](auto mt) { sum_parts<Kind, decltype(mt)::value, true>(device, p, groups, to); });
  }
}

// `weigh_gradient`'s arguments, with what it leaves in scratch.
template <typename T, typename Device>
WeighParams<T> plan_gradient(Device& device, const SimilarityParams<T>& s, bool spreads) {
  WeighParams<T> w = make_weigh<T>(s.grad_logits, s.batch, s.classes, s.height, s.width);
  const int64_t numbers = w.batch * w.stride;
  w.norms = s.norms;
  w.square = s.square;
  w.eps = s.eps;
  if (s.grad_pull) {
    w.labels = s.labels;
    w.ignore_index = s.ignore_index;
    w.grad_pull = s.grad_pull;
    w.pull_stats = s.pull_stats;
    w.target_similarity = s.target_similarity;
    w.own = device.template scratch<T>(numbers);
    w.own_labels = device.template scratch<int>(numbers);
  }
  if (spreads && (s.cosine || s.square != T(0))) {
    w.along = device.template scratch<T>(numbers);
    if (s.cosine) w.logits = s.logits;
  }
  return w;
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
    WeighParams<T> w = plan_gradient(device, s, spreads);
    const View a = allocate_a<Kind>(device, w);
    SumsParams<T> p = make_sums<Kind, T>(a, features, s.batch, groups, s.classes, s.channels);
    if (spreads) p.grad = make_view(s.grad_features, s.batch, s.channels, s.height, s.width);
    const bool both = spreads && s.grad_weights && takes_both<Kind>(device, p);
    ProjectParams<T> q{};
    if (both) {
      plan_both<Kind>(device, s, w, p);
    } else if (spreads) {
      q = plan_spread<Kind>(device, w, a, p.grad, s.channels, s.weights, groups);
      if (w.along) q.input = features;
      q.along = w.along;
      q.own = w.own;
      q.own_labels = w.own_labels;
      q.number_stride = w.stride;
    }
    device.launch(weigh_gradient_kernel<Kind>, w.blocks(), kProductThreads, 0, w);
    if (both) {
      sum_and_spread<Kind>(device, p, groups, s.grad_weights);
    } else if (s.grad_weights) {
      sum_parts<Kind>(device, p, groups, s.grad_weights);
    }
    if (s.grad_weights && p.parts > 1) {
      join_parts(device, p.out, groups, p.parts, s.classes * s.channels, s.grad_weights);
    }
    if (spreads && !both) project<Kind>(device, q, s.batch);
  });
}

template <typename T, typename Device>
void soft_means_fwd(Device& device, const SoftParams<T>& s, const MeansParams<T>& means) {
  if (s.batch * s.pixels() == 0) return finish_means<T>(device, means, nullptr, 0, nullptr, 0);
  dispatch_kind<T>(s.features.type, s.exact, [&](auto kind) {
    using Kind = decltype(kind);
    WeighParams<T> w = make_weigh<T>(s.logits, s.batch, s.classes, s.height, s.width);
    w.lse = device.template scratch<T>(s.batch * w.stride);
    w.mass = device.template scratch<T>(s.batch * w.tiles * s.classes);
    const View a = allocate_a<Kind>(device, w);
    device.launch(weigh_soft_kernel<Kind>, w.blocks(), kProductThreads, 0, w);
    const View features = make_view(s.features, s.batch, s.channels, s.height, s.width);
    SumsParams<T> p = make_sums<Kind, T>(a, features, s.batch, s.batch, s.classes, s.channels);
    if (s.channels > 0) sum_parts<Kind>(device, p, s.batch, static_cast<T*>(nullptr));
    finish_means<T>(device, means, p.out, p.parts, w.mass, w.tiles);
  });
}

template <typename T, typename Device>
void soft_means_bwd(Device& device, const SoftParams<T>& s, MeansGradParams<T> means) {
  const bool spreads = s.grad_features && s.channels > 0;
  if (s.batch * s.pixels() == 0 || (!spreads && !s.grad_logits)) return;
  means = sums_gradient(device, means, true);
  dispatch_kind<T>(s.features.type, s.exact, [&](auto kind) {
    using Kind = decltype(kind);
    WeighParams<T> w = make_weigh<T>(s.logits, s.batch, s.classes, s.height, s.width);
    w.lse = device.template scratch<T>(s.batch * w.stride);
    const View a = spreads ? allocate_a<Kind>(device, w) : View{};
    ProjectParams<T> spread{}, p{};
    if (spreads) {
      const View out = make_view(s.grad_features, s.batch, s.channels, s.height, s.width);
      spread = plan_spread<Kind>(device, w, a, out, s.channels, static_cast<const T*>(means.grad_sums), s.batch);
    }
    if (s.grad_logits) {
      p.epilogue = Epilogue::soft;
      p.x = make_view(s.features, s.batch, s.channels, s.height, s.width);
      p.depth = s.channels;
      p.row_count = s.classes;
      p.out = make_view(s.grad_logits, s.batch, s.classes, s.height, s.width);
      p.input = w.from;
      p.lse = w.lse;
      p.number_stride = w.stride;
      p.grad_mass = means.grad_mass;
      w.rows[1] = plan_product<Kind>(device, p, static_cast<const T*>(means.grad_sums), s.batch, s.classes * s.channels,
                                     s.channels, 1);
    }
    device.launch(weigh_soft_kernel<Kind>, w.blocks(), kProductThreads, 0, w);
    if (spreads) project<Kind>(device, spread, s.batch);
    if (s.grad_logits) project<Kind>(device, p, s.batch);
  });
}

template <typename T, typename Device>
void hard_means_fwd(Device& device, LabelSumsParams<T> p, const MeansParams<T>& means) {
  p.sums = device.template scratch<T>(p.classes * p.channels);
  label_sums_fwd(device, p, true, [&](const LabelSumsParams<T>& q) { return MeansOfLabels<T>{means, q.out_of_range}; });
}

template <typename T, typename Device>
void hard_means_bwd(Device& device, LabelSumsParams<T> p, const MeansGradParams<T>& means) {
  if (p.pixels() * p.channels == 0) return;
  p.sums = sums_gradient(device, means, false).grad_sums;
  label_sums_bwd(device, p);
}

}  // namespace metricseg::centers
