// The epilogues of the contrast family for one vector width.
#pragma once

#include "cpu_workers.h"
#include "margin.h"
#include "nca.h"
#include "softmax.h"

namespace metricseg::contrast {
namespace METRICSEG_SIMD {

template <typename T>
using Negatives = Softmax<T, false>;
template <typename T>
using All = Softmax<T, true>;

#define METRICSEG_EPILOGUE(form, Class, phase, outs)                                   \
  {                                                                                    \
    form " " #phase, Class<float>::kConstants, Class<float>::kCoefs, outs, {           \
      row_pairs::METRICSEG_SIMD::run<float, Class<float>, &Class<float>::phase>,       \
          row_pairs::METRICSEG_SIMD::run<double, Class<double>, &Class<double>::phase> \
    }                                                                                  \
  }
constexpr row_pairs::Epilogue epilogues[] = {
    METRICSEG_EPILOGUE("negatives", Negatives, rows, Negatives<float>::kStats),
    METRICSEG_EPILOGUE("negatives", Negatives, sum, 1),
    METRICSEG_EPILOGUE("negatives", Negatives, positives, 3),
    METRICSEG_EPILOGUE("negatives", Negatives, weights, 0),
    METRICSEG_EPILOGUE("all", All, rows, All<float>::kStats),
    METRICSEG_EPILOGUE("all", All, sum, 1),
    METRICSEG_EPILOGUE("all", All, positives, 3),
    METRICSEG_EPILOGUE("all", All, weights, 0),
    METRICSEG_EPILOGUE("margin", Margin, distances, Margin<float>::kStats),
    METRICSEG_EPILOGUE("margin", Margin, weights, 1),
    METRICSEG_EPILOGUE("nca", Nca, rows, Nca<float>::kStats),
    METRICSEG_EPILOGUE("nca", Nca, weights, 0),
    {},
};
#undef METRICSEG_EPILOGUE

constexpr Workers workers{epilogues};

}  // namespace METRICSEG_SIMD

const Workers METRICSEG_WORKERS = METRICSEG_SIMD::workers;

}  // namespace metricseg::contrast
