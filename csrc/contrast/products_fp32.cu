#include "../common/cuda/launch.h"
#include "dispatch.cuh"

template void metricseg::contrast::launch<metricseg::Exact<float>>(metricseg::CudaDevice&,
                                                                   const metricseg::contrast::ContrastParams<float>&,
                                                                   bool);
