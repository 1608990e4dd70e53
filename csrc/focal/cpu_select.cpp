// Order statistic on the CPU: radix selection, 8 bits at a time from the top. Each pass reads the values once. Each
// thread counts the next digit of the values of its share that match the digits found so far.
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <vector>

#include "../common/host/library.h"
#include "../common/host/parallel.h"
#include "../common/host/torch_map.h"
#include "order_key.h"

namespace metricseg::focal {
namespace {

constexpr int kDigit = 8;
constexpr int64_t kShare = 1 << 16;
using Histogram = std::array<int64_t, 1 << kDigit>;

template <typename T, typename Key>
Histogram count_digits(const T* values, int64_t n, Key prefix, Key mask, int shift) {
  const int64_t shares = ceil_div(n, kShare);
  std::vector<Histogram> parts(shares, Histogram{});
  parallel(shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      Histogram& part = parts[s];
      const int64_t last = (s + 1) * kShare < n ? (s + 1) * kShare : n;
      for (int64_t i = s * kShare; i < last; ++i) {
        const Key key = to_key(values[i]);
        part[(key >> shift) & (part.size() - 1)] += (key & mask) == prefix;
      }
    }
  });
  Histogram all{};
  for (const Histogram& part : parts) {
    for (std::size_t d = 0; d < all.size(); ++d) all[d] += part[d];
  }
  return all;
}

template <typename T>
T kth_largest(const T* values, int64_t n, int64_t k) {
  if (k >= n) return T(-1);
  using Key = typename KeyOf<T>::type;
  Key prefix = 0, mask = 0;
  for (int shift = 8 * static_cast<int>(sizeof(Key)) - kDigit; shift >= 0; shift -= kDigit) {
    const Histogram counts = count_digits(values, n, prefix, mask, shift);
    int digit = (1 << kDigit) - 1;
    for (; k >= counts[digit]; --digit) k -= counts[digit];
    prefix |= static_cast<Key>(digit) << shift;
    mask |= static_cast<Key>((1 << kDigit) - 1) << shift;
  }
  return from_key<T>(prefix);
}

void kth_largest_kernel(Tensor values, int64_t k, double most, Tensor result) {
  STD_TORCH_CHECK(values.is_contiguous() && k >= 0, "metricseg: kth_largest takes contiguous values and k >= 0");
  dispatch_accumulator(type_of(values), [&](auto zero) {
    using T = decltype(zero);
    const T found = kth_largest(data_of<const T>(values), values.numel(), k);
    *data_of<T>(result) = found > static_cast<T>(most) ? static_cast<T>(most) : found;  // NaN stays
  });
}

}  // namespace
}  // namespace metricseg::focal

METRICSEG_LIBRARY_IMPL(CPU, m) { m.impl("kth_largest_kernel", TORCH_BOX(&metricseg::focal::kth_largest_kernel)); }
