"""Triton kernels of the contrast family: the epilogues of op.py's three forms on the tiles of pairwise/triton_tiles.py.

`stats`: a program owns BM rows, and sums a phase of their statistics over its share of the tiles; "negatives" takes two
phases, since its positives need n first: "lse" walks over every tile but those wholly of the rows' own class,
"positives" only over the own span, 1 / K of all for K even classes. `gradient`: the program's accumulators are BM rows
of the gradient, sum_j W_ij y_j; where a set meets itself, the weight of a pair is row i's share plus row j's, so one
walk gives the whole gradient, without atomics.

Where all |s| are below `bound` and twice that can't leave fp32's range (`fixed`, found on the device: unit norm and
temperature >= 0.04), exponentials are exp(s - bound): no running maximum, no rescaling, and one exponential serves both
rows of a pair, W = exp(s - bound) (u_i + u_j) with u_i = b_i exp(bound - m_i). Each launch exists in both kinds, of
which the one that is not wanted returns at once. `symmetric_lse` adds each tile above the diagonal to its rows and to
its columns: half of the products and exponentials of "lse" and "all". Column sums go to an accumulator row of the
program's own, [programs, A], by 1 KB of reading and writing per tile of 2^20 D / 32 flop; a sum in fixed order follows.

Per pair, in fp32 and outside the own span: one FMA, one exponential and one or two additions beside 2 D flop forward,
four instructions and one conversion beside 4 D backward. At D = 256 in bf16 on an H100 that is 1,024 cycles of
exponentials against 2,048 of products per 128 x 128 tile; at D = 64 exponentials bound the forward pass. Bytes are the
copies' (pairwise/triton_tiles.py) and 16 per row and share: no bound anywhere. Nothing here has been timed on a device.
"""

import triton
import triton.language as tl

from ..pairwise.triton_tiles import find_spans, load_groups, load_ids, load_owned, load_slice, no_sums, share, walk
from .triton_forms import load_terms, take_gradient, take_lse, take_margin, take_positives, wanted


@triton.jit
def take_spans(owned, row, y, part, parts, state, kind, numbers, tile, EPILOGUE: tl.constexpr, OUTSIDE: tl.constexpr,
               PURE: tl.constexpr):  # fmt: skip
    """This part's share of the tiles: those outside of the own span, and those in it, with or without the pure ones."""
    first, own, pure, pure_end, own_end, last = find_spans(row[0], y, tile.SCAN)
    if OUTSIDE:
        begin, end = share(last - first - (own_end - own), part, parts)
        state = walk(owned, row, y, first + begin, first + end, own, own_end - own, state, kind, numbers, tile,
                     EPILOGUE, False)  # fmt: skip
    gap = pure_end - pure
    if PURE:
        gap = 0
    begin, end = share(own_end - own - gap, part, parts)
    return walk(owned, row, y, own + begin, own + end, pure, gap, state, kind, numbers, tile, EPILOGUE, True)


@triton.jit
def stats(
    x, y, before, out, bound, scale: tl.float64, margin: tl.float64, positive_margin: tl.float64, kind, tile, parts
):
    """A phase of the sums of BM rows over one part of Y: out [parts, 5, R]; before [2, R]: (m, L) for positives."""
    if wanted(bound, scale, kind):
        r = tl.program_id(0) * tile.BM + tl.arange(0, tile.BM)
        group = load_groups(x, r)
        owned = load_owned(x, r, tile)
        zero = tl.zeros((tile.BM,), tile.ACC)
        part = tl.program_id(1)
        padded = tl.num_programs(0) * tile.BM
        if kind.PHASE == "margin":
            row = (group, load_ids(x, r), zero, tl.load(x.squares + r))
            numbers = (tl.full((), margin, tile.ACC), tl.full((), positive_margin, tile.ACC))
            state = (zero, zero, zero, zero)
            state = take_spans(owned, row, y, part, parts, state, kind, numbers, tile, take_margin, True, True)
            sums = (state[0], state[1], state[2], state[3], zero)
        elif kind.PHASE == "positives":
            row = (group, load_ids(x, r), (tl.load(before + r), tl.load(before + padded + r)), zero)
            numbers = (tl.full((), scale, tile.ACC), zero)
            state = (zero, zero, zero)
            state = take_spans(owned, row, y, part, parts, state, kind, numbers, tile, take_positives, False, True)
            sums = (zero, zero, state[0], state[1], state[2])
        else:
            m = zero + float("-inf")
            if kind.FIXED:
                m = zero + tl.load(bound)
            row = (group, load_ids(x, r), zero, zero)
            numbers = (tl.full((), scale, tile.ACC), zero)
            state = (m, zero, zero, zero)
            state = take_spans(owned, row, y, part, parts, state, kind, numbers, tile, take_lse, True,
                               kind.NAME == "all")  # fmt: skip
            sums = (state[0], tl.log(state[1]), state[2], state[3], zero)
        for i in tl.static_range(5):
            p_sums = out + (part * 5 + i).to(tl.int64) * padded + r
            tl.store(p_sums, tl.where(group < 0, float("-inf") if i == 1 and kind.PHASE == "lse" else 0.0, sums[i]))


@triton.jit
def store_gradient(p_rows, s_d, known, begin, D, value, width: tl.constexpr):
    d = begin + tl.arange(0, width)
    mask = known[:, None] & (d < D)[None, :]
    tl.store(p_rows + d.to(tl.int64)[None, :] * s_d, value.to(p_rows.dtype.element_ty), mask=mask)


@triton.jit
def gradient(x, y, order, out, s_part, s_row, s_d, D, bound, unit, scale: tl.float64, margin: tl.float64,
             positive_margin: tl.float64, kind, tile, parts):  # fmt: skip
    """One part's share of the gradient of BM rows, or of a slice of its columns: out [parts, rows, D]."""
    if wanted(bound, scale, kind):
        r = tl.program_id(0) * tile.BM + tl.arange(0, tile.BM)
        group = load_groups(x, r)
        owned = load_owned(x, r, tile)
        zero = tl.zeros((tile.BM,), tile.ACC)
        terms = (zero, zero, zero, zero, zero)
        if kind.BY_ROW:
            terms = load_terms(x, r)
        row = (group, load_ids(x, r), terms, tl.load(x.squares + r))
        if kind.NAME == "margin":
            numbers = (tl.full((), margin, tile.ACC), tl.full((), positive_margin, tile.ACC))
        elif kind.FIXED:
            numbers = (tl.full((), scale, tile.ACC), tl.load(bound))
        else:
            numbers = (tl.full((), scale, tile.ACC), tl.full((), 0.0, tile.ACC))
        part = tl.program_id(2)
        state = (zero, no_sums(tile))
        total, sums = take_spans(owned, row, y, part, parts, state, kind, numbers, tile, take_gradient, True, True)
        known = r < x.rows
        r_out = r.to(tl.int64)
        if order is not None:
            r_out = tl.load(order + r, mask=known, other=0).to(tl.int64)
        p_rows = out + part.to(tl.int64) * s_part + r_out[:, None] * s_row
        factor = 1.0 / tl.load(unit)
        if tile.CHUNK:
            owned = load_slice(x, r, tile)
        begin = tl.program_id(1) * tile.SLICE
        for i in tl.static_range(len(sums)):
            value = sums[i]
            if kind.NAME == "margin":
                value = owned[i].to(value.dtype) * total[:, None] - value
            value = tl.where((group < 0)[:, None], 0.0, value * factor)
            store_gradient(p_rows, s_d, known, begin, D, value, value.shape[1])
            begin += value.shape[1]
