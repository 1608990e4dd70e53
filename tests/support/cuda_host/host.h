// What the shimmed families share: a device to launch on, and numpy arrays as what kernels take. A 16-bit unsigned
// array stands for bfloat16.
#include "shim.h"  // before the kernels: it gives their words a meaning

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <list>
#include <optional>

#include "../../../csrc/common/cuda/device_limits.h"
#include "../../../csrc/common/tensor_map.h"

namespace py = pybind11;
using namespace metricseg;
using Array = std::optional<py::array>;

inline DeviceLimits limits_of_device{2, 160 << 10};

struct HostDevice {
  DeviceLimits device = limits_of_device;
  std::list<std::vector<std::byte>> scratches;

  DeviceLimits limits() const { return device; }
  template <typename T>
  T* scratch(int64_t count) {
    scratches.emplace_back(count * sizeof(T), std::byte{0xff});
    return reinterpret_cast<T*>(scratches.back().data());
  }
  void clear(void* data, int64_t bytes) { std::memset(data, 0, bytes); }
  template <typename Kernel, typename... Arguments>
  void launch(Kernel kernel, int64_t blocks, int threads, int64_t shared, Arguments... arguments) {
    if (shared > device.shared) throw std::logic_error("more shared memory asked for than a block may have");
    cuda_host::launch(kernel, blocks, threads, shared, arguments...);
  }
};

inline Type type_of(const py::array& a) {
  const char kind = a.dtype().kind();
  switch (kind * 16 + a.itemsize()) {
    case 'f' * 16 + 8:
      return Type::f64;
    case 'f' * 16 + 4:
      return Type::f32;
    case 'u' * 16 + 2:
      return Type::bf16;
    case 'f' * 16 + 2:
      return Type::f16;
    case 'u' * 16 + 1:
      return Type::u8;
    case 'i' * 16 + 4:
      return Type::i32;
    case 'i' * 16 + 8:
      return Type::i64;
  }
  throw py::type_error("unknown dtype");
}

inline bool is_double(const py::array& a) { return type_of(a) == Type::f64; }

template <typename T>
T* pointer(const Array& a) {
  return a ? static_cast<T*>(const_cast<void*>(a->data())) : nullptr;
}

// [B, K, y, x], [B, y, x] or [y, x]; strides in elements.
inline Map map_of(const Array& a) {
  Map map;
  if (!a) return map;
  const auto stride = [&](int i) { return static_cast<int64_t>(a->strides(i) / a->itemsize()); };
  const int last = static_cast<int>(a->ndim()) - 1;
  map.data = pointer<char>(a);
  map.type = type_of(*a);
  map.size = a->itemsize();
  map.b = last > 1 ? stride(0) : 0;
  map.k = last > 2 ? stride(1) : 0;
  map.y = stride(last - 1);
  map.x = stride(last);
  return map;
}

// configure(multiprocessors, shared bytes, seed) and lose_barrier(which of a block, or -1), which every module has.
inline void define_switches(py::module_& m) {
  m.def("configure", [](int multiprocessors, int64_t shared, unsigned seed) {
    limits_of_device = {multiprocessors, shared};
    cuda_host::seed = seed;
    cuda_host::random.seed(seed);
  });
  m.def("lose_barrier", [](int which) { cuda_host::lost_barrier = which; });
}
