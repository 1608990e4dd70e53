// The epilogues of the contrast family for one vector width.
#pragma once

#include "cpu_workers.h"
#include "margin.h"
#include "nca.h"
#include "softmax.h"

namespace metricseg::contrast {
namespace METRICSEG_SIMD {

template <typename T>
using Negatives = Softmax<T, false, false>;
template <typename T>
using All = Softmax<T, true, false>;
template <typename T>
using WeightedNegatives = Softmax<T, false, true>;
template <typename T>
using WeightedAll = Softmax<T, true, true>;

#define METRICSEG_EPILOGUE(form, Class, phase, outs)                                   \
  {                                                                                    \
    form " " #phase, Class<float>::kConstants, Class<float>::kCoefs, outs, {           \
      row_pairs::METRICSEG_SIMD::run<float, Class<float>, &Class<float>::phase>,       \
          row_pairs::METRICSEG_SIMD::run<double, Class<double>, &Class<double>::phase> \
    }                                                                                  \
  }
#define METRICSEG_SOFTMAX(form, Class)                                                                  \
  METRICSEG_EPILOGUE(form, Class, rows, Class<float>::kStats), METRICSEG_EPILOGUE(form, Class, sum, 1), \
      METRICSEG_EPILOGUE(form, Class, positives, 3), METRICSEG_EPILOGUE(form, Class, weights, 0)
constexpr row_pairs::Epilogue epilogues[] = {
    METRICSEG_SOFTMAX("negatives", Negatives),
    METRICSEG_SOFTMAX("all", All),
    METRICSEG_SOFTMAX("weighted negatives", WeightedNegatives),
    METRICSEG_SOFTMAX("weighted all", WeightedAll),
    METRICSEG_EPILOGUE("margin", Margin, distances, Margin<float>::kStats),
    METRICSEG_EPILOGUE("margin", Margin, weights, 1),
    METRICSEG_EPILOGUE("nca", Nca, rows, Nca<float>::kStats),
    METRICSEG_EPILOGUE("nca", Nca, weights, 0),
    {},
};
#undef METRICSEG_SOFTMAX
#undef METRICSEG_EPILOGUE

constexpr Workers workers{epilogues};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::contrast
