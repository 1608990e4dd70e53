#include "../common/cuda/launch.h"
#include "dispatch.cuh"

template void metricseg::contrast::launch<metricseg::Half<__half>>(metricseg::CudaDevice&,
                                                                   const metricseg::contrast::ContrastParams<float>&,
                                                                   bool);
