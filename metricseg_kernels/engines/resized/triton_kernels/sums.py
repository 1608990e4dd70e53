"""Sums over the programs of a walk, in a fixed order."""

import triton
import triton.language as tl


@triton.jit
def add_rows(data, rows, width, column, known, ROWS: tl.constexpr):
    """(sum, maximum) of data [rows, width] over its rows, for some columns."""
    row = tl.arange(0, ROWS)[:, None]
    total = tl.zeros((ROWS, column.shape[0]), tl.float64)
    largest = tl.full((ROWS, column.shape[0]), float("-inf"), tl.float64)
    for begin in range(0, rows, ROWS):
        mask = (begin + row < rows) & known[None, :]
        p_rows = data + tl.cast(begin + row, tl.int64) * width + column[None, :]
        total += tl.load(p_rows, mask=mask, other=0.0)
        largest = tl.maximum(largest, tl.load(p_rows, mask=mask, other=float("-inf")))
    return tl.sum(total, 0), tl.max(largest, 0)
