// Launch sequences of the engine. `Device` is a CUDA stream in the extension and a fiber scheduler in the tests:
// launch(kernel, blocks, threads, shared bytes, arguments...), scratch<T>(count).
#pragma once

#include "gather.cuh"
#include "walk.cuh"

namespace metricseg::row_pairs {

// Arrays in one piece of scratch. They are laid out twice: to know the size, then in it.
class Scratch {
 public:
  template <typename T>
  void take(T*& array, int64_t count, bool wanted = true) {
    array = wanted ? reinterpret_cast<T*>(base_ + size_) : nullptr;
    if (wanted) size_ += ceil_div(count * sizeof(T), 256) * 256;
  }
  template <class Device, typename LayOut>
  static void allocate(Device& device, const LayOut& lay_out) {
    Scratch measure;
    lay_out(measure);
    Scratch scratch;
    scratch.base_ = reinterpret_cast<uintptr_t>(device.template scratch<char>(measure.size_));
    lay_out(scratch);
  }

 private:
  uintptr_t base_ = 0;
  int64_t size_ = 0;
};

// Both sides of the pairs, or one with itself, for products P.
template <class P, class Device>
class Engine {
 public:
  using T = typename P::T;

  Engine(Device& device, const Rows<T>& x, const Rows<T>& y, bool second)
      : geometry_(make_geometry<P>(x.depth, second, device.limits().smem)),
        device_(device),
        itself_(!y.features),
        rows_{x, itself_ ? x : y} {
    Scratch none;
    lay_out(none);
  }

  // Afterwards, in a scratch of its own, the sides have memory.
  void lay_out(Scratch& scratch) {
    lay_out(scratch, rows_[0], x_);
    if (!itself_) lay_out(scratch, rows_[1], y_);
    if (itself_) y_ = x_;
  }

  void gather() {
    Gather<P> g{{rows_[0], rows_[1]}, {x_, y_}, geometry_.row_bytes, reads_words(rows_[0]) && reads_words(rows_[1])};
    device_.launch(gather_kernel<P>, x_.tiles + (itself_ ? 0 : y_.tiles), kThreads, 0, g);
  }

  // of a phase of statistics
  int parts() const { return make_pass(x_, y_, geometry_, false, 1).parts; }

  // Sums [parts, kSums, padded] of a phase over these pairs.
  template <class Phase>
  void stats(bool positives, bool negatives, const Phase& phase, T* out) {
    Pass<T> pass = make_pass(x_, y_, geometry_, itself_ || x_.ids, 1);
    pass.positives = positives;
    pass.negatives = negatives;
    const int64_t blocks = int64_t(x_.padded / kRows) * pass.parts;
    if constexpr (P::kKeeps && Phase::kKeeps) {
      // narrower rows leave room for two blocks, if they don't
      if (geometry_.whole() && 2 * geometry_.chunk_bytes > kWhole) {
        return device_.launch(stats_kernel<P, Phase, true>, blocks, kThreads, geometry_.smem(), pass, phase, out);
      }
    }
    device_.launch(stats_kernel<P, Phase, false>, blocks, kThreads, geometry_.smem(), pass, phase, out);
  }

  // elements of the shares of both gradients, which are computed one after the other
  int64_t shares(bool with_x, bool with_y) const {
    const auto of = [&](const Side<T>& side, const Side<T>& other, const Rows<T>& rows) {
      const int parts = make_pass(side, other, geometry_, false, geometry_.slices).parts;
      return parts > 1 || !direct() ? parts * rows.count * rows.depth : 0;
    };
    return std::max(with_x ? of(x_, y_, rows_[0]) : 0, with_y ? of(y_, x_, rows_[1]) : 0);
  }

  // The gradient of one side, from the coefficients [kMostCoefs, padded] of the rows of x.
  template <class Form>
  void gradient(bool of_x, const T* coefs, const Form& form, const Map& grad, T* shares, const T* largest, int blocks) {
    Side<T> x = x_, y = y_;
    x.coefs = coefs;
    if (itself_) y.coefs = coefs;
    const Rows<T>& rows = rows_[of_x ? 0 : 1];
    if (rows.count * rows.depth == 0) return;
    const Side<T>&side = of_x ? x : y, &other = of_x ? y : x;
    const Pass<T> p = make_pass(side, other, geometry_, itself_ || x_.ids, geometry_.slices);
    const bool shared = p.parts > 1 || !direct();
    GradientOut<T> out{grad, shared ? shares : nullptr, rows.order, rows.count, rows.depth, largest, blocks};
    device_.launch(gradient_kernel<P, Form>, int64_t(side.padded / kRows) * geometry_.slices * p.parts, kThreads,
                   geometry_.smem(), p, form, out);
    if (shared) {
      device_.launch(add_shares_kernel<T>, ceil_div(rows.count * rows.depth, kThreads), kThreads, 0, out, p.parts);
    }
  }

  const Side<T>& x() const { return x_; }
  const Side<T>& y() const { return y_; }
  const Rows<T>& x_rows() const { return rows_[0]; }

 private:
  Geometry geometry_;
  Device& device_;
  bool itself_;
  Rows<T> rows_[2];
  Side<T> x_{}, y_{};

  void lay_out(Scratch& scratch, const Rows<T>& rows, Side<T>& side) const {
    side.padded = static_cast<int>(std::max<int64_t>(ceil_div(rows.count, kRows), 1) * kRows);
    side.tiles = side.padded / P::kColumns;
    scratch.take(side.data, int64_t(side.padded) * geometry_.row_bytes);
    scratch.take(side.squares, side.padded);
    scratch.take(side.groups, side.padded);
    scratch.take(side.ids, side.padded, rows.ids != nullptr);
    scratch.take(side.weights, side.padded, rows.weights != nullptr);
    scratch.take(side.low, side.tiles);
    scratch.take(side.high, side.tiles);
    scratch.take(side.top, side.tiles);
    scratch.take(side.range, side.tiles, rows.weights != nullptr);
  }

  // whether the rows have the operands' type, so that a gradient may be written where it is computed
  bool direct() const { return rows_[0].features.size == sizeof(typename P::Operand); }

  static bool reads_words(const Rows<T>& rows) {
    const Map& m = rows.features;
    const int64_t row = m.y * m.size;
    return m.x == 1 && row % 16 == 0 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && rows.depth * m.size % 16 == 0;
  }
};

}  // namespace metricseg::row_pairs
