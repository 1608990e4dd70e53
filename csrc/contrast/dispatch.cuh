// The kind of products of a call: tensor cores, in fp16 unless weights may leave its range, or exact ones.
#pragma once

#include "run.cuh"

namespace metricseg::contrast {

// f(Kind()): distances, and columns with weights, make weights of any size, so fp16 rows go as fp32, which tf32 holds exactly.
template <typename T, typename F>
void dispatch_products(const ContrastParams<T>& p, const F& f) {
  if constexpr (sizeof(T) == 8) {
    f(Exact<double>());
  } else {
    const Type type = p.x.features.type;
    const bool wide = p.form == Form::margin || p.x.weights || p.y.weights;
    if (type == Type::bf16) return f(Half<__nv_bfloat16>());
    if (type == Type::f16 && !wide) return f(Half<__half>());
    if (type == Type::f16 || !p.exact) return f(Tf32<false>());
    f(Exact<float>());
  }
}

// Forward or backward. Each kind of products has a file of its own (products_*.cu), so that they compile side by side.
template <class Kind, class Device>
void launch(Device& device, const ContrastParams<typename Kind::Sum>& p, bool backward) {
  Contrast<Products<Kind>, Device> contrast(device, p, backward);
  backward ? contrast.backward() : contrast.forward();
}

}  // namespace metricseg::contrast
