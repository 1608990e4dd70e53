"""Sums over the label pixels of a program, and over the programs of a walk, in a fixed order."""

import triton
import triton.language as tl


@triton.jit
def no_extras(P: tl.constexpr):
    """Per lane: a value, valid pixels, labels out of range, the largest of them."""
    count = tl.zeros((P,), tl.int32)
    return tl.zeros((P,), tl.float64), count, count, tl.full((P,), float("-inf"), tl.float64)


@triton.jit
def add_extras(extras, value, labels):
    """Add one label row. In forward every pixel lies in one program."""
    return (
        extras[0] + tl.where(labels.valid, value, 0.0).to(tl.float64),
        extras[1] + labels.valid.to(tl.int32),
        extras[2] + labels.bad.to(tl.int32),
        tl.maximum(extras[3], tl.where(labels.bad, labels.raw.to(tl.float64), float("-inf"))),
    )


@triton.jit
def store_extras(p_extras, extras, k0):
    """Store the sums over the lanes to p_extras [4], in the program of the first chunk of classes alone."""
    for i in tl.static_range(3):
        tl.store(p_extras + i, tl.sum(extras[i]).to(tl.float64), mask=k0 == 0)
    tl.store(p_extras + 3, tl.max(extras[3]), mask=k0 == 0)


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
