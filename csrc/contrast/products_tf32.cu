#include "../common/cuda/launch.h"
#include "dispatch.cuh"

template void metricseg::contrast::launch<metricseg::Tf32<false>>(metricseg::CudaDevice&,
                                                                  const metricseg::contrast::ContrastParams<float>&,
                                                                  bool);
