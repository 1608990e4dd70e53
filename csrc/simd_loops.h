// The vector loops of every family and engine, for the vector width METRICSEG_SIMD. A new family adds one line.
#include "common/simd/simd_begin.h"

#include "centers/cpu_loops.h"
#include "contrast/cpu_epilogues.h"
#include "distill/cpu_loops.h"
#include "engines/row_pairs/product_loops.h"
#include "focal/cpu_loss.h"
#include "lovasz/cpu_loops.h"
#include "predict/cpu_loops.h"
#include "refine/cpu_loops.h"
#include "region/cpu_loops.h"
#include "retrieval/cpu_loops.h"
#include "segments/cpu_loops.h"

#include "common/simd/simd_end.h"
