#include "../common/cuda/launch.h"
#include "dispatch.cuh"

template void metricseg::contrast::launch<metricseg::row_pairs::Exact<double>>(
    metricseg::CudaDevice&, const metricseg::contrast::ContrastParams<double>&, bool);
