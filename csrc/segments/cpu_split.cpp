// Segments on the CPU: the distinct pairs (cluster, label) of each image, in a hash table; then their numbers over the
// batch, by image, cluster and label. Two passes over the pixels; between them the output holds the index of a pixel's
// pair in its image. Images are given to the threads of torch.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/torch_map.h"

namespace metricseg::segments {
namespace {

using Pair = std::pair<int64_t, int64_t>;  // cluster, label

// Distinct pairs, indexed in order of appearance.
class Pairs {
  std::vector<int64_t> slots = std::vector<int64_t>(256, -1);  // index of a pair, or -1

  static uint64_t hash(const Pair& pair) {
    uint64_t z = static_cast<uint64_t>(pair.first) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(pair.second);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    return z ^ (z >> 27);
  }

  int64_t& slot_of(const Pair& pair) {
    const uint64_t mask = slots.size() - 1;
    uint64_t at = hash(pair) & mask;
    while (slots[at] >= 0 && found[slots[at]] != pair) at = (at + 1) & mask;
    return slots[at];
  }

 public:
  std::vector<Pair> found;

  int64_t index_of(const Pair& pair) {
    int64_t& slot = slot_of(pair);
    if (slot >= 0) return slot;
    const int64_t index = slot = static_cast<int64_t>(found.size());
    found.push_back(pair);
    if (2 * found.size() > slots.size()) {
      slots.assign(2 * slots.size(), -1);
      for (int64_t i = 0; i <= index; ++i) slot_of(found[i]) = i;
    }
    return index;
  }
};

// The segments of one image: pairs in order, and from the index of a pair to its rank.
struct Image {
  std::vector<Pair> pairs;
  std::vector<int64_t> ranks;
};

Image first_pass(const Map& ids, const Map& labels, int64_t image, int64_t height, int64_t width, int64_t classes,
                 int64_t ignore_index, int64_t* dense) {
  Pairs pairs;
  Pair last{-1, -1};
  int64_t index = -1;
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x, ++dense) {
      const Pair pair{label_at(ids, image, y, x), label_at(labels, image, y, x)};
      if (pair != last) {
        const bool known = pair.first >= 0 && pair.second >= 0 && pair.second < classes && pair.second != ignore_index;
        index = known ? pairs.index_of(pair) : -1;
        last = pair;
      }
      *dense = index;
    }
  }
  Image found{{}, std::vector<int64_t>(pairs.found.size())};
  std::vector<int64_t> order(pairs.found.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return pairs.found[a] < pairs.found[b]; });
  for (size_t rank = 0; rank < order.size(); ++rank) {
    found.ranks[order[rank]] = static_cast<int64_t>(rank);
    found.pairs.push_back(pairs.found[order[rank]]);
  }
  return found;
}

void split_by_label_kernel(Tensor ids, Tensor labels, int64_t classes, int64_t ignore_index, Tensor dense, Tensor found,
                           Tensor count) {
  const int64_t batch = ids.size(0), height = ids.size(1), width = ids.size(2), capacity = found.size(0);
  const Map id_map = map_of(ids), label_map = map_of(labels);
  int64_t* const out = static_cast<int64_t*>(dense.mutable_data_ptr());
  std::vector<Image> images(batch);
  parallel(batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      images[b] = first_pass(id_map, label_map, b, height, width, classes, ignore_index, out + b * height * width);
    }
  });
  int64_t* const segment_labels = static_cast<int64_t*>(found.mutable_data_ptr());
  std::fill_n(segment_labels, capacity, int64_t{-1});
  std::vector<int64_t> starts(batch);
  int64_t total = 0;
  for (int64_t b = 0; b < batch; ++b) {
    starts[b] = total;
    for (const Pair& pair : images[b].pairs) {
      if (total < capacity) segment_labels[total] = pair.second;
      ++total;
    }
  }
  *static_cast<int64_t*>(count.mutable_data_ptr()) = total;
  parallel(batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t* const p = out + b * height * width;
      for (int64_t i = 0; i < height * width; ++i) {
        const int64_t number = p[i] < 0 ? -1 : starts[b] + images[b].ranks[p[i]];
        p[i] = number < capacity ? number : -1;
      }
    }
  });
}

}  // namespace
}  // namespace metricseg::segments

METRICSEG_LIBRARY_IMPL(CPU, m) {
  m.impl("split_by_label_kernel", TORCH_BOX(&metricseg::segments::split_by_label_kernel));
}
