"""Mean of summed terms, one program: O(A n) counts."""

import triton
import triton.language as tl

from ...core.triton_kernels import divide


@triton.jit(do_not_specialize=["rows"])
def mean(terms, counts, weights, loss, totals, divisors, rows, SUMS: tl.constexpr, BY_ROW: tl.constexpr,
         WEIGHTED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """loss = sum_k terms_k / totals_k, see `op.mean`."""
    value = tl.zeros((), terms.dtype.element_ty)
    for k in tl.static_range(SUMS):
        sums = tl.zeros((BLOCK,), tl.float64)
        for begin in range(0, rows, BLOCK):
            r = begin + tl.arange(0, BLOCK)
            count = tl.load(counts + r * SUMS + k, mask=r < rows, other=0.0).to(tl.float64)
            if BY_ROW:
                counted = count > 0.0
                count = counted.to(tl.float64)
                if WEIGHTED:
                    count = tl.where(counted, tl.load(weights + r, mask=r < rows, other=0.0).to(tl.float64), 0.0)
            sums += count
        total = tl.sum(sums, 0)
        divisor = tl.where(total > 0.0, total, 1.0).to(value.dtype)
        value += divide(tl.load(terms + k), divisor)
        tl.store(totals + k, total)
        tl.store(divisors + k, divisor)
    tl.store(loss, value)
