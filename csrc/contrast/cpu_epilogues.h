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

#define METRICSEG_EPILOGUE(form, Class, phase, outs)              \
  {form " " #phase, Class<T>::kConstants, Class<T>::kCoefs, outs, \
   row_pairs::METRICSEG_SIMD::run<T, Class<T>, &Class<T>::phase>}
#define METRICSEG_SOFTMAX(form, Class)                                                              \
  METRICSEG_EPILOGUE(form, Class, rows, Class<T>::kStats), METRICSEG_EPILOGUE(form, Class, sum, 1), \
      METRICSEG_EPILOGUE(form, Class, positives, 3), METRICSEG_EPILOGUE(form, Class, weights, 0)
template <typename T>
constexpr row_pairs::Epilogue<T> epilogues[] = {
    METRICSEG_SOFTMAX("negatives", Negatives),
    METRICSEG_SOFTMAX("all", All),
    METRICSEG_SOFTMAX("weighted negatives", WeightedNegatives),
    METRICSEG_SOFTMAX("weighted all", WeightedAll),
    METRICSEG_EPILOGUE("margin", Margin, distances, Margin<T>::kStats),
    METRICSEG_EPILOGUE("margin", Margin, weights, 1),
    METRICSEG_EPILOGUE("nca", Nca, rows, Nca<T>::kStats),
    METRICSEG_EPILOGUE("nca", Nca, weights, 0),
    {},
};
#undef METRICSEG_SOFTMAX
#undef METRICSEG_EPILOGUE

template <typename T>
constexpr Loops<T> loops{epilogues<T>};

constexpr Workers workers{METRICSEG_LOOPS};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::contrast
