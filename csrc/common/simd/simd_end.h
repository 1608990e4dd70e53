// Closes the region that simd_begin.h opened.
#undef METRICSEG_SIMD_REGION

#if defined(__clang__)
#if METRICSEG_SIMD_BYTES > 16
#pragma clang attribute pop
#endif
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif
