// Opens a region that is compiled for one vector width; simd_end.h closes it.
//
// A source file defines METRICSEG_SIMD (a namespace: avx512, avx2 or baseline), includes this, then the headers that
// hold the loops, then simd_end.h. The loops are written once, on the Lanes of lanes.h. Every width gets a namespace of
// its own, so that the linker never mixes them. Standard headers come first: their code stays at the baseline, and the
// regions instantiate no standard template.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define METRICSEG_SIMD_REGION  // open; lanes.h requires it

#define METRICSEG_SIMD_IS_avx512 64
#define METRICSEG_SIMD_IS_avx2 32
#define METRICSEG_SIMD_IS_baseline 16
#define METRICSEG_SIMD_PASTE(name) METRICSEG_SIMD_IS_##name
#define METRICSEG_SIMD_WORKERS(name) name##_workers
#define METRICSEG_SIMD_NAME(name) METRICSEG_SIMD_WORKERS(name)
#define METRICSEG_SIMD_WIDTH(name) METRICSEG_SIMD_PASTE(name)
#define METRICSEG_SIMD_BYTES METRICSEG_SIMD_WIDTH(METRICSEG_SIMD)
#define METRICSEG_WORKERS METRICSEG_SIMD_NAME(METRICSEG_SIMD)  // avx512_workers, avx2_workers or baseline_workers
// loops of both types; those in fp64, which is for checks, are not compiled a third time (METRICSEG_WIDEST_OF)
#if METRICSEG_SIMD_BYTES == 64
#define METRICSEG_LOOPS loops<float>, Loops<double>()
#else
#define METRICSEG_LOOPS loops<float>, loops<double>
#endif

#if defined(__clang__)
#if METRICSEG_SIMD_BYTES == 64
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#elif METRICSEG_SIMD_BYTES == 32
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#endif
#else
#pragma GCC push_options
#if METRICSEG_SIMD_BYTES == 64
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#elif METRICSEG_SIMD_BYTES == 32
#pragma GCC target("avx2,fma")
#else
#pragma GCC optimize("O2")  // two thirds of the size, for processors that are hardly left
#endif
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi"  // everything that takes a vector is inlined
#endif
