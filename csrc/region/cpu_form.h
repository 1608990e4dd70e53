// What the forms of cpu_loops.h share: numbers per pixel, and the sums of a share of the pixels.
#pragma once

#include "../engines/resized/cpu_softmax.h"
#include "../engines/resized/cpu_walk.h"
#include "cpu_params.h"

namespace metricseg::region {
namespace METRICSEG_SIMD {

using namespace resized::METRICSEG_SIMD;

// Per pixel, [P, N] each.
template <typename T>
struct Pixels {
  T *max, *label, *weight;
  T* target_logit;  // later its replacement
  T* rest;          // sum of exponentials, without that of a label
  T* gap;           // sum_k w_k (max - z_k), with label smoothing
  T* factor;        // gradient = factor * (what the block holds)
  T* offset;        // of w_k, with label smoothing
  T* dot;           // sum_k exp(z_k - max) dL/dp_k, without that of a label
  T* target;        // y_k of one class; with labels p_t (forward) or dL/dp_t (backward)
  T* shift;         // what is added to dL/dp_k

  Pixels(T* memory, int64_t n)
      : max(memory),
        label(memory + n),
        weight(memory + 2 * n),
        target_logit(memory + 3 * n),
        rest(memory + 4 * n),
        gap(memory + 5 * n),
        factor(memory + 6 * n),
        offset(memory + 7 * n),
        dot(memory + 8 * n),
        target(memory + 9 * n),
        shift(memory + 10 * n) {}
};

// Sums of a share of the pixels in fp64, lane by lane: a block adds up to 16 vectors in T first.
template <typename T>
struct Sums : BadLabels {
  static constexpr int N = Lanes<T>::count;
  const int64_t K;
  double *hits, *mass, *count;  // [K, N] I, P, Y
  double *loss, *valid;         // [N]

  Sums(const CpuParams<T>& params, double* memory)
      : K(params.classes), hits(memory), mass(hits + K * N), count(mass + K * N), loss(count + K * N), valid(loss + N) {
    std::memset(memory, 0, sizeof(double) * (kSums * K + 2) * N);
  }

  static double total(const double* lanes) {
    double sum = 0;
    for (int i = 0; i < N; ++i) sum += lanes[i];
    return sum;
  }

  // of_labels: mass lacks the pixels of the class itself, whose share is I; the valid pixels are those with a label.
  void write(bool of_labels, double* out) const {
    double pixels = 0;
    for (int64_t k = 0; k < K; ++k, out += kSums) {
      out[0] = total(hits + k * N);
      out[1] = total(mass + k * N) + (of_labels ? out[0] : 0);
      out[2] = total(count + k * N);
      pixels += out[2];
    }
    out[kLoss] = total(loss);
    out[kValid] = of_labels ? pixels : total(valid);
    out[kBad] = bad;
    out[kBadLabel] = bad_label;
  }
};

// What the forms share.
template <typename T>
struct Form : BlockLoss<T> {
  using V = Lanes<T>;
  static constexpr int N = V::count;

  const CpuParams<T>& params;
  const int64_t K;
  const Pixels<T> px;
  Sums<T> sums;
  const T *hit_grad = nullptr, *mass_grad = nullptr;  // [K] of the image

  // sums: [kSums K + 2, N]
  Form(const CpuParams<T>& params, const Pixels<T>& px, double* sums)
      : BlockLoss<T>{px.max, px.factor}, params(params), K(params.classes), px(px), sums(params, sums) {}

  void choose_image(int64_t image) {
    const int64_t at = params.per_image ? image * K : 0;
    hit_grad = params.hit_grad + at;
    mass_grad = params.mass_grad + at;
  }

  // The value of valid pixels, else 0.
  METRICSEG_HD V select_valid(V value, int64_t i) const {
    const V zero(T(0));
    return select(V::load(px.label + i) >= zero, value, zero);
  }
};

}  // namespace METRICSEG_SIMD
}  // namespace metricseg::region
