"""Sums over label pixels: per lane in a program, then over lanes, then over programs by `add_sums`. No atomics.

A program adds at most some 64 label rows per lane in the accumulator dtype. All other sums are in float64.
"""

import triton
import triton.language as tl

from ...engines.resized.triton_kernels.axes import class_blocks
from ...engines.resized.triton_kernels.sums import add_rows
from ...engines.resized.triton_kernels.tiles import zero_blocks


@triton.jit
def no_sums(form, kind):
    """Per lane and class of the chunk: I, P, Y, [k, P] blocks each."""
    ks = class_blocks(kind.KS)
    zeros = zero_blocks(ks, kind.C * kind.R, form.SUM)
    return zeros, zeros, zeros


@triton.jit
def store_sums(p_sums, sums, k0, classes, form, kind):
    """Sums over the lanes to p_sums [K, 3]. With labels and softmax, P lacks the pixels of the class itself, I."""
    hits, mass, count = sums
    ks = class_blocks(kind.KS)
    for i in tl.static_range(len(ks)):
        known = ks[i] < classes - k0
        p_class = p_sums + 3 * (k0 + ks[i])
        hit, total = hits[i].to(tl.float64), mass[i].to(tl.float64)
        if form.PHASE != "sigmoid" and not form.DENSE:
            total += hit
        tl.store(p_class, tl.sum(hit, 1, keep_dims=True), mask=known)
        tl.store(p_class + 1, tl.sum(total, 1, keep_dims=True), mask=known)
        tl.store(p_class + 2, tl.sum(count[i].to(tl.float64), 1, keep_dims=True), mask=known)


@triton.jit(do_not_specialize=["rows", "extra_rows", "columns"])
def add_sums(partials, extras, sums, loss, totals, rows: tl.int32, extra_rows: tl.int32, columns: tl.int32,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Grid: (S, blocks of columns and one more). partials [S rows, columns] -> sums [S, columns], by all but the last;
    extras [S extra_rows, 4] -> loss [], totals [S, 3]."""
    image, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, COLUMNS)
    if block < tl.num_programs(1) - 1:
        column += block * COLUMNS
        total, _ = add_rows(partials + image * rows * columns, rows, columns, column, column < columns, ROWS)
        tl.store(sums + image * columns + column, total, mask=column < columns)
    else:
        total, largest = add_rows(extras + image * extra_rows * 4, extra_rows, 4, column, column < 4, ROWS)
        example = tl.where(largest == float("-inf"), 0.0, largest)
        value = tl.where(column == 3, example, total)
        tl.store(totals + image * 3 + column - 1, value, mask=(column >= 1) & (column < 4))
        if image == 0:
            every, _ = add_rows(extras, extra_rows * tl.num_programs(0), 4, column, column < 1, ROWS)
            tl.store(loss + column, every, mask=column < 1)
