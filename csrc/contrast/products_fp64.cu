#include "../common/cuda/launch.h"
#include "dispatch.cuh"

template void metricseg::contrast::launch<metricseg::Exact<double>>(metricseg::CudaDevice&,
                                                                    const metricseg::contrast::ContrastParams<double>&,
                                                                    bool);
