// Spherical k-means on the CPU: turns the tensors of torch into a CpuParams, and gives its pixels to the threads of torch.
// An iteration is one pass over the pixels of an image. Sums are formed in parts that depend on the shapes alone, and
// are added in order. So the bits are the same whatever the number of threads.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/simd_choice.h"
#include "../common/host/torch_map.h"
#include "../engines/pixel_rows/samples.h"
#include "cpu_params.h"

namespace metricseg::segments {
namespace {

constexpr int64_t kPanel = 1024;    // pixels whose sums join those of a part, or more for many clusters
constexpr int64_t kParts = 64;      // of the pixels of all images
constexpr int64_t kPartShare = 16;  // parts take up to this share of the embeddings' memory

template <typename T>
const Loops<T>& loops() {
  static const Loops<T>& chosen = METRICSEG_WIDEST_OF(T);
  return chosen;
}

// The centers of all images, and the sums that the next ones are made of.
template <typename T>
class Centers {
  const CpuParams<T>& params;
  const int64_t parts, packed_values;
  decltype(aligned_values<T>(0)) sums, packed;  // [B, parts, K + 1, stride], [B, packed]
  std::vector<int64_t> members;                 // [B, parts, K + 1]
  std::vector<int32_t> clusters;                // [B, K]
  std::vector<Live<T>> found;                   // [B]

 public:
  Centers(const CpuParams<T>& params, int64_t batch, int64_t parts)
      : params(params),
        parts(parts),
        packed_values((params.clusters + kPadRows) * params.dims()),
        sums(aligned_values<T>(batch * parts * params.sums_values())),
        packed(aligned_values<T>(batch * packed_values)),
        members(batch * parts * (params.clusters + 1)),
        clusters(batch * params.clusters),
        found(batch) {}

  T* sums_of(int64_t part) const { return sums.get() + part * params.sums_values(); }
  int64_t* members_of(int64_t part) { return members.data() + part * (params.clusters + 1); }
  const Live<T>* live(int64_t image) const { return found.data() + image; }

  void clear(int64_t part) {
    std::fill_n(sums_of(part), params.sums_values(), T(0));
    std::fill_n(members_of(part), params.clusters + 1, int64_t{0});
  }

  // m_k = sums_k / max(|sums_k|, eps), 0 for 0, of the clusters that have a pixel
  void update(int64_t image) {
    const int64_t J = params.dims(), stride = params.stride(), first = image * parts;
    int32_t* const own = clusters.data() + image * params.clusters;
    T* const total = sums_of(first);  // of all parts, then the centers, without gaps
    int64_t count = 0;
    for (int64_t k = 0; k < params.clusters; ++k) {
      int64_t pixels = 0;
      for (int64_t part = first; part < first + parts; ++part) pixels += members_of(part)[k];
      if (pixels == 0) continue;
      T* const center = total + count * stride;
      T square(0);
      for (int64_t j = 0; j < J; ++j) {
        T sum = total[k * stride + j];
        for (int64_t part = first + 1; part < first + parts; ++part) sum += sums_of(part)[k * stride + j];
        center[j] = sum;
        square += sum * sum;
      }
      const T factor = square == T(0) ? T(0) : T(1) / std::max(std::sqrt(square), params.eps);
      for (int64_t j = 0; j < J; ++j) center[j] *= factor;
      own[count++] = static_cast<int32_t>(k);
    }
    T* const out = packed.get() + image * packed_values;
    loops<T>().pack(total, stride, 1, count, J, out);
    found[image] = {out, own, count};
  }
};

// Whether each thread takes whole images, which then stay in its cache through all iterations; else the threads share
// the pixels of an iteration.
bool by_image(int64_t batch) {
  const int64_t threads = torch::stable::get_num_threads();
  return batch % threads == 0 || batch >= 4 * threads;
}

template <typename T>
void run(const CpuParams<T>& params, int64_t batch, int64_t iterations) {
  const int64_t pixels = params.height * params.width;
  const int64_t panel = (std::max(kPanel, 8 * params.clusters) + kMostTile - 1) / kMostTile * kMostTile;
  const int64_t panels = (pixels + panel - 1) / panel;
  const int64_t fit = pixels * params.channels / (kPartShare * std::max<int64_t>(params.sums_values(), 1));
  const int64_t most = std::min({kParts / std::max<int64_t>(batch, 1), panels, fit});
  const int64_t parts = std::max<int64_t>(most, 1);
  Centers<T> centers(params, batch, parts);
  const auto assign = [&](int64_t pass, int64_t part, T* scratch) {
    const bool last = pass == iterations;
    const int64_t image = part / parts, index = part % parts;
    centers.clear(part);
    for (int64_t at = panels * index / parts; at < panels * (index + 1) / parts; ++at) {
      loops<T>().assign(params, pass > 0 ? centers.live(image) : nullptr, image, at * panel,
                        std::min((at + 1) * panel, pixels), scratch, last ? nullptr : centers.sums_of(part),
                        centers.members_of(part), last);
    }
  };
  if (by_image(batch)) {
    parallel(batch, 1, [&](int64_t begin, int64_t end) {
      const auto scratch = aligned_values<T>(params.scratch_values());
      for (int64_t image = begin; image < end; ++image) {
        for (int64_t pass = 0; pass <= iterations; ++pass) {
          for (int64_t part = image * parts; part < (image + 1) * parts; ++part) assign(pass, part, scratch.get());
          if (pass < iterations) centers.update(image);
        }
      }
    });
    return;
  }
  for (int64_t pass = 0; pass <= iterations; ++pass) {
    parallel(batch * parts, 1, [&](int64_t begin, int64_t end) {
      const auto scratch = aligned_values<T>(params.scratch_values());
      for (int64_t part = begin; part < end; ++part) assign(pass, part, scratch.get());
    });
    if (pass == iterations) break;
    parallel(batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) centers.update(image);
    });
  }
}

void kmeans_kernel(Tensor embeddings, Optional location, Optional valid, Optional init, int64_t rows, int64_t columns,
                   int64_t iterations, bool coordinated, bool align_corners, double eps, Tensor ids) {
  dispatch_accumulator(type_of(embeddings), [&](auto zero) {
    using T = decltype(zero);
    CpuParams<T> params{};
    params.channels = embeddings.size(1);
    params.height = ids.size(1);
    params.width = ids.size(2);
    params.clusters = rows * columns;
    params.block_rows = std::max<int64_t>((params.height + rows - 1) / rows, 1);
    params.block_columns = std::max<int64_t>((params.width + columns - 1) / columns, 1);
    params.grid_columns = columns;
    params.coordinated = coordinated;
    params.eps = static_cast<T>(eps);
    params.embeddings = map_of(embeddings);
    params.location = map_of(location);
    params.valid = map_of(valid);
    params.init = map_of(init);
    params.ids = map_of(ids);
    std::vector<Sample<T>> row_samples, column_samples;
    if (embeddings.size(2) != params.height || embeddings.size(3) != params.width) {
      row_samples = samples<T>(embeddings.size(2), params.height, align_corners);
      column_samples = samples<T>(embeddings.size(3), params.width, align_corners);
      params.resized = {row_samples.data(), column_samples.data()};
    }
    run(params, ids.size(0), iterations);
  });
}

}  // namespace
}  // namespace metricseg::segments

METRICSEG_LIBRARY_IMPL(CPU, m) { m.impl("kmeans_kernel", TORCH_BOX(&metricseg::segments::kmeans_kernel)); }
