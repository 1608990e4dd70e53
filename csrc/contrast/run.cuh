// Launch sequences of the contrast kernels for one kind of products. Forward: gather, one or two phases, finish. Backward:
// gather, coefficients, a gradient for each side that wants one, and its parts added up.
#pragma once

#include "../engines/row_pairs/run.cuh"
#include "../engines/row_pairs/sort.cuh"
#include "margin.cuh"
#include "nca.cuh"
#include "params.h"
#include "row_terms.cuh"
#include "softmax.cuh"

namespace metricseg::contrast {

constexpr double kSpread = 60;  // largest range of exponents for which one bound serves all rows
constexpr int64_t kFinishBlocks = 64, kFinishRows = 4096;  // at most; of a block, unless there are more blocks

template <typename T, class Device>
void sort_rows(Device& device, const SortParams<T>& p) {
  const int64_t blocks = ceil_div(p.sides[0].count, kSorted) + ceil_div(p.sides[1].count, kSorted);
  if (blocks > 0) device.launch(sort_kernel<T>, blocks, kSortThreads, 0, p);
}

template <typename T, class Device>
void mean(Device& device, const MeanParams<T>& p) {
  device.launch(mean_kernel<T>, 1, kFinishThreads, 0, p);
}

template <class P, class Device>
class Contrast {
 public:
  using T = typename P::T;

  Contrast(Device& device, const ContrastParams<T>& p, bool second)
      : device_(device), p_(p), engine_(device, p.x, p.y, second) {}

  void forward() {
    const int parts = engine_.parts(), padded = engine_.x().padded;
    if (p_.form == Form::margin) {
      if constexpr (kDistances) {
        forward(MarginRows<T>{nullptr, parts, padded}, [&](T* sums, MarginRows<T>& rows) {
          engine_.stats(true, true, MarginPhase<P>{margin()}, sums);
          rows.sums = sums;
        });
      }
    } else if (p_.form == Form::nca) {
      forward(NcaRows<T>{scale(), scale_of_e(), nullptr, parts, padded}, [&](T* sums, NcaRows<T>& rows) {
        engine_.stats(true, true, NcaPhase<P>{scale()}, sums);
        rows.sums = sums;
      });
    } else {
      forward(softmax_rows(parts, padded), [&](T* sums, SoftmaxRows<T>& rows) {
        T* const positives = sums + int64_t(parts) * LsePhase<P>::kSums * padded;
        engine_.stats(rows.all, true, LsePhase<P>{scale(), rows.all}, sums);
        engine_.stats(true, false, PositivesPhase<P>{scale(), scale_of_e(), rows.all, sums, parts, padded}, positives);
        rows.exponentials = sums;
        rows.positives = positives;
      });
    }
  }

  void backward() {
    if (p_.form == Form::margin) {
      if constexpr (kDistances) backward(MarginRows<T>{}, [&](const T*, bool) { return MarginWeights<P>{margin()}; });
    } else if (p_.form == Form::nca) {
      backward(NcaRows<T>{scale(), scale_of_e(), nullptr, 0, 0},
               [&](const T*, bool of_x) { return NcaWeights<P>{scale(), of_x || p_.itself(), !of_x || p_.itself()}; });
    } else {
      backward(softmax_rows(0, 0),
               [&](const T* bound, bool) { return SoftmaxWeights<P>{scale(), p_.form == Form::all, bound}; });
    }
  }

 private:
  Device& device_;
  const ContrastParams<T>& p_;
  Engine<P, Device> engine_;

  static constexpr bool kDistances = !std::is_same_v<typename P::Operand, __half>;  // see dispatch.cuh

  T scale_of_e() const { return T(1 / p_.numbers[0]); }
  T scale() const { return sizeof(T) == 4 ? T(1.4426950408889634 / p_.numbers[0]) : scale_of_e(); }
  Margin<P> margin() const { return {T(p_.numbers[0]), T(p_.numbers[1]), p_.numbers[2] == 2, p_.numbers[3] != 0}; }
  SoftmaxRows<T> softmax_rows(int parts, int padded) const {
    const double temperature = p_.numbers[0], c = p_.numbers[1];
    return {scale(), scale_of_e(), T(c / temperature), T(c), p_.form == Form::all, nullptr, nullptr, parts, padded};
  }

  // phases(sums, rows) launches what leaves the sums of all phases of the form
  template <class RowTerms, class Phases>
  void forward(RowTerms rows, const Phases& phases) {
    const int64_t blocks = std::min(ceil_div(p_.x.count, kFinishRows), kFinishBlocks);
    T *sums, *partial;
    Scratch::allocate(device_, [&](Scratch& scratch) {
      engine_.lay_out(scratch);
      scratch.take(sums, int64_t(engine_.parts()) * RowTerms::kSums * engine_.x().padded);
      scratch.take(partial, blocks * RowTerms::kTerms);
    });
    engine_.gather();
    phases(sums, rows);
    const int64_t least = std::max<int64_t>(blocks, 1);  // also for the sum of no terms
    device_.launch(finish_kernel<T, RowTerms>, least, kFinishThreads, 0, rows,
                   FinishOut<T>{p_.x, p_.stats, p_.terms, p_.counts, p_.reduce, partial});
    if (p_.reduce && blocks > 1) {
      device_.launch(add_partial_kernel<T>, 1, kWarp, 0, partial, static_cast<int>(blocks), RowTerms::kTerms, p_.terms);
    }
  }

  // form(bound, of x): the epilogue of the gradient of a side
  template <class RowTerms, class MakeForm>
  void backward(const RowTerms& rows, const MakeForm& form) {
    const Map &grad_x = p_.grad_x, &grad_y = p_.grad_y;
    const int64_t blocks = ceil_div(engine_.x().padded, kThreads);
    T *coefs, *bound, *largest, *shares;
    Scratch::allocate(device_, [&](Scratch& scratch) {
      engine_.lay_out(scratch);
      scratch.take(coefs, int64_t(kMostCoefs) * engine_.x().padded);
      scratch.take(bound, 2);
      scratch.take(largest, blocks);
      scratch.take(shares, engine_.shares(bool(grad_x), bool(grad_y)));
    });
    engine_.gather();
    device_.launch(coefs_kernel<T, RowTerms>, blocks, kThreads, 0, rows,
                   CoefsIn<T>{p_.x, p_.stats, p_.terms, p_.reduce, engine_.x(), engine_.y(), scale_of_e(), T(kSpread),
                              coefs, bound, largest});
    if (grad_x) engine_.gradient(true, coefs, form(bound, true), grad_x, shares, largest, int(blocks));
    if (grad_y) engine_.gradient(false, coefs, form(bound, false), grad_y, shares, largest, int(blocks));
  }
};

}  // namespace metricseg::contrast
