"""Copies of both sides as the walk over tiles takes them, and what holds for all of their rows.

`gather_rows`: a program copies one tile of either side. `survey`: one program, from a few numbers of each tile.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ....core.triton_kernels import root, round_to_tf32


class Layout(NamedTuple):
    """The compile-time side of both kernels."""

    WIDTH: Any  # of a row of the copy
    ROWS: Any  # of a tile
    BLOCK: Any  # columns that are copied at once
    ROUND: Any  # to tf32
    UNIT_STRIDE: Any
    WITH_IDS: Any
    WEIGHTED: Any  # whether the last side has weights
    TWO: Any  # whether there are two sides


@triton.jit
def gather_tile(rows, s_row, s_d, count, D, side, tops, t, tiles, layout, WEIGHTED: tl.constexpr):
    """Tile t of a side; tops [3, tiles]: the largest |x|^2, |log w| and w of each tile."""
    r = t * layout.ROWS + tl.arange(0, layout.ROWS)  # [ROWS]
    group = tl.load(rows.groups + r, mask=r < count, other=-1)
    known = group >= 0  # a row that takes no part is zeros here, whatever it holds
    p_rows = rows.features + tl.load(rows.order + r, mask=known, other=0).to(tl.int64)[:, None] * s_row
    total = tl.zeros((layout.ROWS,), side.squares.dtype.element_ty)
    for begin in range(0, layout.WIDTH, layout.BLOCK):
        d = begin + tl.arange(0, layout.BLOCK)
        offsets = d if layout.UNIT_STRIDE else d.to(tl.int64) * s_d
        x = tl.load(p_rows + offsets[None, :], mask=known[:, None] & (d < D)[None, :], other=0.0)
        x = x.to(side.data.dtype.element_ty)
        if layout.ROUND:
            x = round_to_tf32(x)
        p_data = side.data + r.to(tl.int64)[:, None] * layout.WIDTH + d[None, :]
        tl.store(p_data, x, mask=(d < layout.WIDTH)[None, :])
        wide = x.to(total.dtype)
        total += tl.sum(wide * wide, 1)
    tl.store(side.squares + r, total)
    tl.store(side.groups + r, group)
    tl.store(side.low + t, tl.min(group, 0))
    tl.store(side.high + t, tl.max(group, 0))
    # NaN counts as infinite
    tl.store(tops + t, tl.max(tl.where(total == total, total, float("inf")), 0))
    if layout.WITH_IDS:
        tl.store(side.ids + r, tl.load(rows.ids + r, mask=r < count, other=-1))
    if WEIGHTED:
        weights = tl.load(rows.weights + r, mask=r < count, other=0.0)
        tl.store(side.weights + r, weights)
        logs = tl.abs(tl.log(tl.where(known & (weights > 0.0), weights, 1.0)))
        tl.store(tops + tiles + t, tl.max(logs, 0))
        tl.store(tops + 2 * tiles + t, tl.max(weights, 0))


@triton.jit(do_not_specialize=["x_s_d", "y_s_d", "x_count", "y_count", "x_tiles", "y_tiles"])
def gather_rows(x_rows, y_rows, x, y, tops, x_s_row, x_s_d: tl.int64, y_s_row, y_s_d: tl.int64, x_count, y_count, D,
                x_tiles, y_tiles, layout):  # fmt: skip
    """Copy both sides; tops: one of each."""
    t = tl.program_id(0)
    if layout.TWO:
        if t < x_tiles:
            gather_tile(x_rows, x_s_row, x_s_d, x_count, D, x, tops[0], t, x_tiles, layout, False)
        else:
            gather_tile(y_rows, y_s_row, y_s_d, y_count, D, y, tops[1], t - x_tiles, y_tiles, layout, layout.WEIGHTED)
    else:
        gather_tile(x_rows, x_s_row, x_s_d, x_count, D, x, tops[0], t, x_tiles, layout, layout.WEIGHTED)


@triton.jit
def find_alive(side, tiles, BLOCK: tl.constexpr):
    """spans [4]: tiles [0, 1) hold a row that takes part; of those, tiles [2, 3) hold only rows that do."""
    first, last = tiles, 0
    full, full_end, fulls = tiles, 0, 0
    for begin in range(0, tiles, BLOCK):
        t = begin + tl.arange(0, BLOCK)
        some = tl.load(side.high + t, mask=t < tiles, other=-1) >= 0
        every = tl.load(side.low + t, mask=t < tiles, other=-1) >= 0
        first = tl.minimum(first, tl.min(tl.where(some, t, tiles), 0))
        last = tl.maximum(last, tl.max(tl.where(some, t + 1, 0), 0))
        full = tl.minimum(full, tl.min(tl.where(every, t, tiles), 0))
        full_end = tl.maximum(full_end, tl.max(tl.where(every, t + 1, 0), 0))
        fulls += tl.sum(every.to(tl.int32), 0)
    first = tl.minimum(first, last)
    # a span with a hole is dropped: then all its tiles are masked
    if fulls == 0 or fulls < full_end - full:
        full, full_end = first, first
    tl.store(side.spans, first)
    tl.store(side.spans + 1, last)
    tl.store(side.spans + 2, full)
    tl.store(side.spans + 3, full_end)


@triton.jit
def largest(values, count, BLOCK: tl.constexpr):
    """The largest of values [count] >= 0."""
    top = tl.zeros((BLOCK,), values.dtype.element_ty)
    for begin in range(0, count, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        top = tl.maximum(top, tl.load(values + i, mask=i < count, other=0.0))
    return tl.max(top, 0)


@triton.jit(do_not_specialize=["x_tiles", "y_tiles"])
def survey(x, y, tops, earlier, x_tiles, y_tiles, scale: tl.float64, layout, SPREAD: tl.constexpr,
           BLOCK: tl.constexpr):  # fmt: skip
    """Spans of both sides, bounds, and whether exponentials of scale (<x, y> - bound) stay in range for all rows."""
    find_alive(x, x_tiles, BLOCK)
    x_top = largest(tops[0], x_tiles, BLOCK)
    y_top, last, tiles = x_top, tops[0], x_tiles
    if layout.TWO:
        find_alive(y, y_tiles, BLOCK)
        y_top, last, tiles = largest(tops[1], y_tiles, BLOCK), tops[1], y_tiles
    # |<x, y>| <= |x|max |y|max
    bound = root(x_top) * root(y_top)
    spread = 2.0 * bound * tl.full((), scale, bound.dtype)
    heaviest = 1.0
    if layout.WEIGHTED:
        spread += largest(last + tiles, tiles, BLOCK)
        heaviest = largest(last + 2 * tiles, tiles, BLOCK)
    tl.store(earlier.bounds, bound)
    tl.store(earlier.bounds + 1, heaviest)
    tl.store(earlier.bounds + 2, 1.0)
    tl.store(earlier.fixed, (spread <= SPREAD).to(tl.int32))
