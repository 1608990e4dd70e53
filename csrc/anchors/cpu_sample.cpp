// The choice of anchors on the CPU, without a sort of the pixels. One pass over the labels counts the pixels of every
// cell; the counts settle how many each cell gives. A second pass draws each pixel's key and keeps the few below a
// limit under which a cell very likely has enough; those are sorted. Images are shared out to torch's threads; labels
// are read twice, where once is the least.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "../common/parallel.h"
#include "../common/torch_map.h"
#include "rules.h"

namespace metricseg::anchors {
namespace {

using torch::stable::Tensor;

constexpr double kDeviations = 6.0;

struct Job {
  Map labels, first;  // [B, h, w]; first is uint8, absent where all pixels are in group 0
  int64_t images, height, width, classes, ignore_index;
  Keys keys;
};

struct Bad {
  int64_t count = 0, largest = std::numeric_limits<int64_t>::min();
};

struct Cell {
  int64_t n = 0, place = 0;  // it fills rows [place, place + n) of the result
};

struct Candidate {
  int64_t cell;
  uint64_t key;
  int64_t pixel;

  bool operator<(const Candidate& other) const { return cell != other.cell ? cell < other.cell : key < other.key; }
};

// f(pixel of the batch, cell of the image) for each pixel of an image; 2 K stands for ignored, bad(label) comes first
// where it should not be.
template <typename Label, typename F, typename OnBad>
void walk_labels(const Job& job, int64_t image, const F& f, const OnBad& bad) {
  int64_t pixel = image * job.height * job.width;
  for (int64_t y = 0; y < job.height; ++y) {
    const auto* labels = reinterpret_cast<const Label*>(job.labels.at(image, 0, y, 0));
    const auto* first = job.first ? reinterpret_cast<const uint8_t*>(job.first.at(image, 0, y, 0)) : nullptr;
    for (int64_t x = 0; x < job.width; ++x, ++pixel) {
      const int64_t label = labels[x * job.labels.x];
      const bool inside = label >= 0 && label < job.classes, ignored = label == job.ignore_index;
      if (!inside && !ignored) bad(label);
      const int64_t group = first != nullptr && first[x * job.first.x] == 0;
      f(pixel, inside && !ignored ? 2 * label + group : 2 * job.classes);
    }
  }
}

template <typename F, typename OnBad>
void walk(const Job& job, int64_t image, const F& f, const OnBad& bad) {
  switch (job.labels.type) {
    case Type::u8:
      return walk_labels<uint8_t>(job, image, f, bad);
    case Type::i32:
      return walk_labels<int32_t>(job, image, f, bad);
    default:
      return walk_labels<int64_t>(job, image, f, bad);
  }
}

// counts [B, 2 K + 1]; the last of each image counts its ignored pixels
std::vector<int64_t> count_cells(const Job& job, std::vector<Bad>& bad) {
  const int64_t cells = 2 * job.classes + 1;
  std::vector<int64_t> counts(job.images * cells, 0);
  parallel(job.images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      Bad seen;
      int64_t* mine = counts.data() + image * cells;
      walk(
          job, image, [&](int64_t, int64_t cell) { ++mine[cell]; },
          [&](int64_t label) {
            ++seen.count;
            seen.largest = std::max(seen.largest, label);
          });
      bad[image] = seen;
    }
  });
  return counts;
}

// plan [B, 2 K + 1]: what each cell gives, and where it goes. -> rows in use
int64_t settle_quotas(const Job& job, const Rules& rules, const Keys& slot_keys, const std::vector<int64_t>& counts,
                      std::vector<Cell>& plan) {
  struct Slot {
    uint64_t key;
    int64_t first_cell;
  };
  std::vector<Slot> slots;
  for (int64_t image = 0; image < job.images; ++image) {
    for (int64_t c = 0; c < job.classes; ++c) {
      const int64_t cell = image * (2 * job.classes + 1) + 2 * c;
      if (rules.open(counts[cell], counts[cell + 1])) slots.push_back({slot_keys(image * job.classes + c), cell});
    }
  }
  const auto all = static_cast<int64_t>(slots.size());
  if (all > rules.max_samples) {
    const auto by_key = [](const Slot& a, const Slot& b) { return a.key < b.key; };
    std::nth_element(slots.begin(), slots.begin() + rules.max_samples, slots.end(), by_key);
    slots.resize(rules.max_samples);
    std::sort(slots.begin(), slots.end(), [](const Slot& a, const Slot& b) { return a.first_cell < b.first_cell; });
  }
  const int64_t views = rules.views(all);
  int64_t rows = 0;
  for (const Slot& slot : slots) {
    const int64_t have_0 = counts[slot.first_cell], have_1 = counts[slot.first_cell + 1];
    const int64_t from_0 = rules.first(have_0, have_1, views), from_1 = std::min(have_1, views - from_0);
    plan[slot.first_cell] = {from_0, rows};
    plan[slot.first_cell + 1] = {from_1, rows + from_0};
    rows += from_0 + from_1;
  }
  return rows;
}

// The pixels of one image: index and sampled at the places of its cells. plan and counts [2 K + 1] are the image's.
void choose_pixels(const Job& job, int64_t image, const Cell* plan, const int64_t* counts, int64_t* index,
                   int64_t* sampled) {
  const int64_t cells = 2 * job.classes + 1;
  std::vector<uint64_t> limits(cells, 0);
  for (int64_t cell = 0; cell < cells; ++cell) {
    if (plan[cell].n > 0) limits[cell] = likely_limit(counts[cell], plan[cell].n, kDeviations);
  }
  std::vector<Candidate> candidates;
  for (bool enough = false; !enough;) {
    candidates.clear();
    const Keys keys = job.keys;
    walk(
        job, image,
        [&](int64_t pixel, int64_t cell) {
          const uint64_t key = keys(pixel);
          if (key <= limits[cell]) candidates.push_back({cell, key, pixel});
        },
        [](int64_t) {});
    std::sort(candidates.begin(), candidates.end());
    enough = true;
    std::size_t at = 0;
    for (int64_t cell = 0; cell < cells; ++cell) {
      const std::size_t begin = at;
      while (at < candidates.size() && candidates[at].cell == cell) ++at;
      if (static_cast<int64_t>(at - begin) < plan[cell].n) {
        limits[cell] = ~uint64_t(0);
        enough = false;
        continue;
      }
      for (int64_t i = 0; i < plan[cell].n; ++i) {
        index[plan[cell].place + i] = candidates[begin + i].pixel;
        sampled[plan[cell].place + i] = cell / 2;
      }
    }
  }
}

void sample_anchors_kernel(Tensor labels, std::optional<Tensor> first, Tensor seed, int64_t max_samples,
                           int64_t max_views, int64_t min_pixels, bool half, int64_t num_classes, int64_t ignore_index,
                           int64_t ignore_label, Tensor index, Tensor sampled, Tensor count, Tensor bad) {
  const int64_t drawn = *static_cast<const int64_t*>(seed.const_data_ptr());
  const Job job{map_of(labels), map_of(first), labels.size(0), labels.size(1),
                labels.size(2), num_classes,   ignore_index,   Keys::make(drawn, kPixels)};
  const Rules rules{max_samples, max_views, min_pixels, half};
  const int64_t cells = 2 * num_classes + 1;
  std::vector<Bad> seen(job.images);
  const std::vector<int64_t> counts = count_cells(job, seen);
  std::vector<Cell> plan(counts.size());
  const int64_t rows = settle_quotas(job, rules, Keys::make(drawn, kSlots), counts, plan);

  auto* chosen = static_cast<int64_t*>(index.mutable_data_ptr());
  auto* classes = static_cast<int64_t*>(sampled.mutable_data_ptr());
  std::fill(chosen + rows, chosen + max_samples, int64_t(-1));
  std::fill(classes + rows, classes + max_samples, ignore_label);
  *static_cast<int64_t*>(count.mutable_data_ptr()) = rows;
  parallel(job.images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      choose_pixels(job, image, plan.data() + image * cells, counts.data() + image * cells, chosen, classes);
    }
  });

  Bad all;
  for (const Bad& one : seen) all = {all.count + one.count, std::max(all.largest, one.largest)};
  auto* out = static_cast<int64_t*>(bad.mutable_data_ptr());
  out[0] = all.count;
  out[1] = all.count > 0 ? all.largest : 0;
}

}  // namespace
}  // namespace metricseg::anchors

STABLE_TORCH_LIBRARY_IMPL(metricseg, CPU, m) {
  m.impl("sample_anchors_kernel", TORCH_BOX(&metricseg::anchors::sample_anchors_kernel));
}
