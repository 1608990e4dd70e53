// A CUDA device for the launchers of the op families: launches on the stream of torch, scratch from its allocator.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <vector>

#include "device_limits.h"
#include "stream.h"

namespace metricseg {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) cudaGetLastError();  // else the next launch would report it again
  STD_TORCH_CHECK(error == cudaSuccess, "metricseg: ", what, ": ", cudaGetErrorString(error));
}

class CudaDevice {
 public:
  // `like` is a tensor on the device. Scratch lives as long as this object; torch's allocator keeps it for the stream.
  explicit CudaDevice(const torch::stable::Tensor& like)
      : like_(like), guard_(like.get_device_index()), stream_(current_stream(like.get_device_index())) {
    const int index = like.get_device_index();
    int smem = 0;
    check_cuda(cudaDeviceGetAttribute(&limits_.multiprocessors, cudaDevAttrMultiProcessorCount, index), "attributes");
    check_cuda(cudaDeviceGetAttribute(&smem, cudaDevAttrMaxSharedMemoryPerBlockOptin, index), "attributes");
    limits_.smem = smem - kStaticSmem;
  }

  DeviceLimits limits() const { return limits_; }

  template <typename T>
  T* scratch(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    scratches_.push_back(torch::stable::new_empty(like_, {bytes}, torch::headeronly::ScalarType::Byte));
    return static_cast<T*>(scratches_.back().mutable_data_ptr());
  }

  void clear(void* data, int64_t bytes) {
    if (bytes > 0) check_cuda(cudaMemsetAsync(data, 0, bytes, stream_), "memset");
  }

  template <typename... Parameters, typename... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t smem, Arguments... arguments) {
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int>::max(), "metricseg: too many blocks: ", blocks);
    if (smem > kDefaultSmem) {
      check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem)),
                 "shared memory");
    }
    kernel<<<dim3(static_cast<unsigned>(blocks)), dim3(threads), smem, stream_>>>(arguments...);
    check_cuda(cudaGetLastError(), "launch");
  }

 private:
  torch::stable::Tensor like_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
  DeviceLimits limits_{};
  std::vector<torch::stable::Tensor> scratches_;
};

}  // namespace metricseg
