// Choice of anchors on the CPU, without a sort of the pixels. One pass over the labels numbers the cell of each pixel
// (4 bytes, kept) and counts the pixels of each cell. The counts determine the quota of each cell. A second pass draws
// the key of each pixel and keeps the few below a likely limit, which are then sorted. Images are shared among the
// threads of torch. Derivation: docs/kernels/anchors.md.
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/torch_map.h"
#include "arguments.h"

namespace metricseg::anchors {
namespace {

constexpr double kDeviations = 3.0;  // a miss, once in hundreds of calls, costs one more walk over an image

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

// cells[x] = 2 label + group for a row of an image, 2 K for what takes no part. -> whether a label is out of range
template <typename Label>
bool number_row(const SampleParams& params, const char* row, int64_t stride, int32_t* cells) {
  const auto* labels = reinterpret_cast<const Label*>(row);
  const auto classes = static_cast<uint64_t>(params.num_classes);
  bool bad = false;
  const auto number = [&](int64_t x, int64_t label) {
    const bool inside = static_cast<uint64_t>(label) < classes, ignored = label == params.ignore_index;
    bad |= !inside & !ignored;
    cells[x] = static_cast<int32_t>(inside & !ignored ? 2 * label : 2 * params.num_classes);
  };
  if (stride == 1) {
    for (int64_t x = 0; x < params.width; ++x) number(x, labels[x]);
  } else {
    for (int64_t x = 0; x < params.width; ++x) number(x, labels[x * stride]);
  }
  return bad;
}

template <typename Label>
Bad look_closer(const SampleParams& params, const char* row, int64_t stride) {
  Bad bad;
  for (int64_t x = 0; x < params.width; ++x) {
    const int64_t label = reinterpret_cast<const Label*>(row)[x * stride];
    if (class_of(label, params.num_classes, params.ignore_index) == kOutOfRange)
      bad = {bad.count + 1, std::max(bad.largest, label)};
  }
  return bad;
}

// Adds the group to cells[x] = 2 label: 1 for a pixel that is not preferred (SampleParams::second).
template <typename Prediction>
void number_groups(const SampleParams& params, int64_t image, int64_t y, int32_t* cells) {
  const Map &predictions = params.predictions, &first = params.first;
  const auto none = static_cast<int32_t>(2 * params.num_classes);
  const Prediction* predicted = predictions ? reinterpret_cast<Prediction*>(predictions.at(image, 0, y, 0)) : nullptr;
  const char* named = first ? first.at(image, 0, y, 0) : nullptr;
  for (int64_t x = 0; x < params.width; ++x) {
    const bool right = !predicted || static_cast<int64_t>(predicted[x * predictions.x]) == cells[x] / 2;
    cells[x] += right & (!named || named[x * first.x] == 0) & (cells[x] < none);
  }
}

template <typename Label>
Bad number_image(const SampleParams& params, int64_t image, int32_t* cells) {
  Bad all;
  for (int64_t y = 0; y < params.height; ++y, cells += params.width) {
    const char* labels = params.labels.at(image, 0, y, 0);
    if (number_row<Label>(params, labels, params.labels.x, cells)) {
      const Bad bad = look_closer<Label>(params, labels, params.labels.x);
      all = {all.count + bad.count, std::max(all.largest, bad.largest)};
    }
    if (!params.predictions && !params.first) continue;
    dispatch_label(params.predictions.type,
                   [&](auto prediction) { number_groups<decltype(prediction)>(params, image, y, cells); });
  }
  return all;
}

// cells [B, h, w] and counts [B, 2 K + 1]; the last of each image counts the pixels that take no part
Bad count_cells(const SampleParams& params, int32_t* cells, std::vector<int64_t>& counts) {
  const int64_t width = 2 * params.num_classes + 1, area = params.height * params.width;
  std::vector<Bad> seen(params.batch);
  parallel(params.batch, 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> other(width);
    for (int64_t image = begin; image < end; ++image) {
      int32_t* image_cells = cells + image * area;
      seen[image] = dispatch_label(
          params.labels.type, [&](auto label) { return number_image<decltype(label)>(params, image, image_cells); });
      // two counters for each cell: an increment does not depend on that of the neighbor
      int64_t* even = counts.data() + image * width;
      std::fill(other.begin(), other.end(), 0);
      int64_t i = 0;
      for (; i + 1 < area; i += 2) {
        ++even[image_cells[i]];
        ++other[image_cells[i + 1]];
      }
      if (i < area) ++even[image_cells[i]];
      for (int64_t cell = 0; cell < width; ++cell) even[cell] += other[cell];
    }
  });
  Bad all;
  for (const Bad& one : seen) all = {all.count + one.count, std::max(all.largest, one.largest)};
  return all;
}

// plan [B, 2 K + 1]: number of pixels of each cell, and their place. -> rows in use
int64_t settle_quotas(const SampleParams& params, const std::vector<int64_t>& counts, std::vector<Cell>& plan) {
  const Rules& rules = params.rules;
  const Keys slot_keys = Keys::make(*params.seed, kSlots);
  struct Slot {
    uint64_t key;
    int64_t first_cell;
  };
  std::vector<Slot> slots;
  for (int64_t image = 0; image < params.batch; ++image) {
    for (int64_t c = 0; c < params.num_classes; ++c) {
      const int64_t cell = image * (2 * params.num_classes + 1) + 2 * c;
      if (rules.open(counts[cell], counts[cell + 1]))
        slots.push_back({slot_keys(image * params.num_classes + c), cell});
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

// The pixels of one image: index and sampled at the places of its cells. cells [h, w], plan and counts
// [2 K + 1] are those of the image.
void choose_pixels(const SampleParams& params, int64_t image, const int32_t* cells, const Cell* plan,
                   const int64_t* counts) {
  const int64_t width = 2 * params.num_classes + 1, area = params.height * params.width;
  std::vector<uint64_t> limits(width, 0);
  for (int64_t cell = 0; cell < width; ++cell) {
    if (plan[cell].n > 0) limits[cell] = likely_limit(counts[cell], plan[cell].n, params.deviations);
  }
  std::vector<Candidate> candidates;
  for (bool enough = false; !enough;) {
    candidates.clear();
    const Keys keys = Keys::make(*params.seed, kPixels);
    for (int64_t i = 0; i < area; ++i) {
      const uint64_t key = keys(image * area + i);
      if (key <= limits[cells[i]]) candidates.push_back({cells[i], key, image * area + i});
    }
    std::sort(candidates.begin(), candidates.end());
    enough = true;
    std::size_t at = 0;
    for (int64_t cell = 0; cell < width; ++cell) {
      const std::size_t begin = at;
      while (at < candidates.size() && candidates[at].cell == cell) ++at;
      if (static_cast<int64_t>(at - begin) < plan[cell].n) {
        limits[cell] = ~uint64_t(0);
        enough = false;
        continue;
      }
      for (int64_t i = 0; i < plan[cell].n; ++i) {
        params.index[plan[cell].place + i] = candidates[begin + i].pixel;
        params.sampled[plan[cell].place + i] = cell / 2;
      }
    }
  }
}

void run(const SampleArguments<Tensor>& a) {
  const SampleParams params = a.params(kDeviations);
  const int64_t width = 2 * params.num_classes + 1, area = params.height * params.width;
  const auto cells = aligned_values<int32_t>(params.pixels());
  std::vector<int64_t> counts(params.batch * width, 0);
  const Bad all = count_cells(params, cells.get(), counts);
  std::vector<Cell> plan(counts.size());
  const int64_t rows = settle_quotas(params, counts, plan);

  std::fill(params.index + rows, params.index + params.rules.max_samples, int64_t(-1));
  std::fill(params.sampled + rows, params.sampled + params.rules.max_samples, params.ignore_label);
  *params.count = rows;
  parallel(params.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      const int64_t first = image * width;
      choose_pixels(params, image, cells.get() + image * area, plan.data() + first, counts.data() + first);
    }
  });
  params.bad[0] = all.count;
  params.bad[1] = all.count > 0 ? all.largest : 0;
}

}  // namespace
}  // namespace metricseg::anchors

METRICSEG_LIBRARY_IMPL(CPU, m) {
  using namespace metricseg::anchors;
  m.impl("sample_anchors_kernel", TORCH_BOX((&sample_anchors_kernel<metricseg::Tensor, run>)));
}
