// The current CUDA stream of torch. The extension does not depend on libtorch_cuda, so that it also loads if torch has
// no CUDA. A library that Python loaded is not in the global scope, so a weak symbol would stay null. The function is
// looked up in the library itself, or among all symbols if torch keeps it elsewhere.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace metricseg {

using GetCurrentStream = AOTITorchError (*)(int32_t device_index, void** ret_stream);

// Null if torch has no CUDA.
inline GetCurrentStream find_get_current_stream() {
  static const auto found = [] {
    constexpr char kName[] = "aoti_torch_get_current_cuda_stream";
    void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library == nullptr ? nullptr : dlsym(library, kName);
    if (symbol == nullptr) symbol = dlsym(RTLD_DEFAULT, kName);
    return reinterpret_cast<GetCurrentStream>(symbol);
  }();
  return found;
}

inline cudaStream_t current_stream(int32_t device_index) {
  const GetCurrentStream get_current_stream = find_get_current_stream();
  STD_TORCH_CHECK(get_current_stream != nullptr, "metricseg: this torch has no CUDA");
  void* stream = nullptr;
  STD_TORCH_CHECK(get_current_stream(device_index, &stream) == 0, "metricseg: torch gave no CUDA stream");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace metricseg
