// The contrast family on the CPU: its epilogues on the tiles of engines/row_pairs, and the products of that engine.
#include "../engines/row_pairs/product_kernel.h"
#include "../engines/row_pairs/tile_kernel.h"
#include "cpu_workers.h"

namespace metricseg::contrast {
namespace {

struct Table {
  template <typename T>
  static const row_pairs::Epilogue<T>* epilogues(T) {
    static const Loops<T>& chosen = METRICSEG_WIDEST_OF(T);
    return chosen.epilogues;
  }
};

}  // namespace
}  // namespace metricseg::contrast

METRICSEG_LIBRARY_IMPL(CPU, m) {
  m.impl("contrast_tile_kernel", TORCH_BOX(&metricseg::row_pairs::tile_kernel<metricseg::contrast::Table>));
}
