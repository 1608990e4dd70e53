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

namespace metricseg {

using Array = std::optional<py::array>;

inline DeviceLimits limits_of_device{2, 160 << 10};

struct HostDevice {
  DeviceLimits device = limits_of_device;
  std::list<std::vector<std::byte>> scratches;

  HostDevice() { cuda_host::arrays.clear(); }
  DeviceLimits limits() const { return device; }
  template <typename T>
  T* scratch(int64_t count) {
    if (cuda_host::only_record) return nullptr;
    scratches.emplace_back(count * sizeof(T), std::byte{0xff});
    cuda_host::remember(scratches.back().data(), count * sizeof(T), "scratch " + std::to_string(scratches.size() - 1));
    return reinterpret_cast<T*>(scratches.back().data());
  }
  void clear(void* data, int64_t bytes) {
    if (bytes <= 0) return;
    if (cuda_host::only_record) return cuda_host::recorded.push_back({"memset", 1, 0, 0});
    std::memset(data, 0, bytes);
  }
  template <typename Kernel, typename... Arguments>
  void launch(Kernel kernel, int64_t blocks, int threads, int64_t smem, Arguments... arguments) {
    if (smem > device.smem) throw std::logic_error("more shared memory asked for than a block may have");
    if (smem > kDefaultSmem) cuda_host::opted_in[reinterpret_cast<const void*>(kernel)] = smem;
    cuda_host::launch(kernel, blocks, threads, smem, arguments...);
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
    case 'b' * 16 + 1:
      return Type::u8;
    case 'i' * 16 + 2:
      return Type::i16;
    case 'i' * 16 + 4:
      return Type::i32;
    case 'i' * 16 + 8:
      return Type::i64;
  }
  throw py::type_error("unknown dtype");
}

inline int64_t rank_of(const py::array& a) { return a.ndim(); }
inline int64_t size_of(const py::array& a, int64_t dimension) { return a.shape(dimension); }

// The memory that an array spans, for the words of an error.
inline void remember(const py::array& a) {
  int64_t bytes = a.size() > 0 ? a.itemsize() : 0;
  std::string shape;
  for (int64_t i = 0; i < a.ndim(); ++i) {
    bytes += std::max<int64_t>(a.shape(i) - 1, 0) * std::abs(a.strides(i));
    shape += (i > 0 ? ", " : "") + std::to_string(a.shape(i));
  }
  cuda_host::remember(a.data(), bytes, py::str(a.dtype()).cast<std::string>() + " array [" + shape + "]");
}

// Null without elements, as torch has it.
inline const void* data_of(const py::array& a) { return a.size() > 0 ? a.data() : nullptr; }

template <typename T>
T* data_of(const Array& a) {
  if (a) remember(*a);
  return a ? static_cast<T*>(const_cast<void*>(data_of(*a))) : nullptr;
}

inline Map map_of(const Array& a) {
  if (!a) return {};
  remember(*a);
  return make_map(data_of(*a), type_of(*a), a->ndim(), [&](int64_t i) { return a->strides(i) / a->itemsize(); });
}

// configure(multiprocessors, shared bytes, seed) and lose_barrier(which of a block, or -1), which every module has; and
// record(whether to run no kernel), after which recorded() are the launches as (kernel, blocks, threads, shared bytes),
// a "memset" among them.
inline void define_switches(py::module_& m) {
  m.def("configure", [](int multiprocessors, int64_t smem, unsigned seed) {
    limits_of_device = {multiprocessors, smem};
    cuda_host::seed = seed;
    cuda_host::random.seed(seed);
  });
  m.def("lose_barrier", [](int which) { cuda_host::lost_barrier = which; });
  m.def("record", [](bool only) {
    cuda_host::only_record = only;
    cuda_host::recorded.clear();
  });
  m.def("recorded", [] {
    std::vector<std::tuple<std::string, int64_t, int, int64_t>> launches;
    for (const auto& l : cuda_host::recorded) launches.emplace_back(l.kernel, l.blocks, l.threads, l.shared);
    return launches;
  });
}

}  // namespace metricseg
