"""Triton kernels of the contrast family, on the tiles of pairwise/triton_tiles.py.

`stats`: a program owns BM rows and sums a phase of their statistics over its share of the tiles. "lse" finds n over all
tiles but those wholly of the rows' own class (in "all" over all); "positives", which needs n, walks only over the tiles
that may hold the own class, 1 / K of all for K even classes; "margin" needs one phase. `gradient`: the accumulators are
BM rows of the gradient, sum_j W_ij y_j; where a set meets itself, the weight of a pair is row i's share plus row j's,
so one walk gives the whole gradient, without atomics.

Where |s| <= `bound` for all pairs, and twice that can't leave fp32's range (`fixed`, found on the device; so it is for
unit norm and temperature >= 1 / 30), exponentials are exp(s - bound): no running maximum, no rescaling, and one
exponential serves both rows of a pair, W = exp(s - bound) (u_i + u_j), u_i = b_i exp(bound - m_i). Each launch exists
in both kinds, of which the one that the data do not ask for returns at once. `symmetric_lse` is the "lse" of that kind
for a set with itself: it meets each pair of blocks once and adds to its rows and its columns, half of the products and
of the exponentials. Column sums go to a row of the program's own in [programs, R]: 1 KB of L2 traffic per 128 x 128
tile, whose operands are 2 x 128 D; their sum in fixed order follows, 1 KB per row of the set in all.

Operations per pair of a set with itself, in units of D multiply-adds: forward 1/2 + 1/K, backward 2. Outside the own
class an element costs, in fp32, one FMA, one exponential and two additions forward; four instructions and half a
conversion backward. At D = 256 in bf16, an H100's multiprocessor takes 2,048 cycles for the products of a 128 x 128
tile and 1,024 for its exponentials; at D = 64 exponentials bound the forward pass: 262,144 rows have 3.4e10 of them, 9
ms. Bytes bound nothing: the copies, and 20 per row and share. Nothing here has been timed on a device.
"""

import triton
import triton.language as tl

from ..pairwise.triton_tiles import (
    find_spans,
    load_groups,
    load_ids,
    load_owned,
    load_slice,
    no_sums,
    tiles_before,
    walk,
)
from .triton_forms import load_terms, take_both_lse, take_gradient, take_lse, take_margin, take_positives, wanted


@triton.jit
def take_tiles(owned, row, y, part, parts, state, kind, numbers, tile, EPILOGUE: tl.constexpr, OTHERS: tl.constexpr,
               PURE: tl.constexpr):  # fmt: skip
    """This part's share of the tiles: those of other groups only, where asked for, and those that need masks, with or
    without the ones wholly of the rows' own group."""
    others, masked, mixed = find_spans(row[0], y, tile.SCAN)
    if OTHERS:
        begin, end = others[1] * part // parts, others[1] * (part + 1) // parts
        state = walk(owned, row, y, others, begin, end, state, kind, numbers, tile, EPILOGUE, False)
    if PURE:
        begin, end = masked[1] * part // parts, masked[1] * (part + 1) // parts
        return walk(owned, row, y, masked, begin, end, state, kind, numbers, tile, EPILOGUE, True)
    else:
        begin, end = mixed[1] * part // parts, mixed[1] * (part + 1) // parts
        return walk(owned, row, y, mixed, begin, end, state, kind, numbers, tile, EPILOGUE, True)


@triton.jit
def stats(
    x,
    y,
    before,
    out,
    bound,
    fixed,
    scale: tl.float64,
    margin: tl.float64,
    positive_margin: tl.float64,
    kind,
    tile,
    parts,
):
    """A phase of the sums of BM rows over one part of Y: out [parts, 5, R]; before [2, R]: (m, L) for positives."""
    if wanted(fixed, kind):
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
            state = take_tiles(owned, row, y, part, parts, state, kind, numbers, tile, take_margin, True, True)
            sums = (state[0], state[1], state[2], state[3], zero)
        elif kind.PHASE == "positives":
            row = (group, load_ids(x, r), (tl.load(before + r), tl.load(before + padded + r)), zero)
            numbers = (tl.full((), scale, tile.ACC), zero)
            state = (zero, zero, zero)
            state = take_tiles(owned, row, y, part, parts, state, kind, numbers, tile, take_positives, False, True)
            sums = (zero, zero, state[0], state[1], state[2])
        else:
            m = zero + float("-inf")
            if kind.FIXED:
                m = zero + tl.load(bound)
            row = (group, load_ids(x, r), zero, zero)
            numbers = (tl.full((), scale, tile.ACC), zero)
            state = (m, zero)
            state = take_tiles(owned, row, y, part, parts, state, kind, numbers, tile, take_lse, True,
                               kind.NAME == "all")  # fmt: skip
            sums = (state[0], tl.log(state[1]), zero, zero, zero)
        for i in tl.static_range(5):
            p_sums = out + (part * 5 + i).to(tl.int64) * padded + r
            tl.store(p_sums, tl.where(group < 0, float("-inf") if i == 1 and kind.PHASE == "lse" else 0.0, sums[i]))


@triton.jit
def symmetric_lse(x, out, bound, fixed, scale: tl.float64, kind, tile):
    """Sums of exp((s - bound) / t) over the denominators of a set with itself, each pair of blocks met once.

    Block i meets the blocks at distances 0 to half way around. A program takes an even share of these meetings, row by
    row, and adds to out [programs, R], of which a row is its own.
    """
    if wanted(fixed, kind):
        RATIO: tl.constexpr = tile.BM // tile.BN
        program, programs = tl.program_id(0), tl.num_programs(0)
        sums = out + program.to(tl.int64) * x.padded
        first = tl.load(x.spans) // RATIO
        last = tl.cdiv(tl.load(x.spans + 1), RATIO)
        blocks = last - first
        far = blocks // 2 + 1
        meetings = blocks.to(tl.int64) * far
        begin, end = meetings * program // programs, meetings * (program + 1) // programs
        numbers = (tl.full((), scale, tile.ACC), tl.load(bound))
        for index in range((begin // far).to(tl.int32), tl.cdiv(end, far).to(tl.int32)):
            near = tl.maximum(begin - tl.cast(index, tl.int64) * far, 0).to(tl.int32)
            until = tl.minimum(end - tl.cast(index, tl.int64) * far, far).to(tl.int32)
            # of two blocks half way around from each other, the first meets the second
            until = tl.where((blocks % 2 == 0) & (index * 2 >= blocks), tl.minimum(until, far - 1), until)
            block = first + index
            r = block * tile.BM + tl.arange(0, tile.BM)
            group = load_groups(x, r)
            owned = load_owned(x, r, tile)
            m = tl.where(group < 0, float("inf"), numbers[1])
            row = (group, load_ids(x, r), (m, sums, block))
            others, masked, mixed = find_spans(group, x, tile.SCAN)
            state = (tl.zeros((tile.BM,), tile.ACC),)
            for turn in range(2):
                # up to the last block, then on from the first
                shift = block - turn * blocks
                low, high = tl.maximum(shift + near, first) * RATIO, tl.minimum(shift + until, last) * RATIO
                high = tl.maximum(low, high)
                state = walk(owned, row, x, others, tiles_before(others, low), tiles_before(others, high), state, kind,
                             numbers, tile, take_both_lse, False)  # fmt: skip
                if kind.NAME == "all":
                    state = walk(owned, row, x, masked, tiles_before(masked, low), tiles_before(masked, high), state,
                                 kind, numbers, tile, take_both_lse, True)  # fmt: skip
                else:
                    state = walk(owned, row, x, mixed, tiles_before(mixed, low), tiles_before(mixed, high), state,
                                 kind, numbers, tile, take_both_lse, True)  # fmt: skip
            tl.debug_barrier()  # what one thread added to a column, another may read
            tl.store(sums + r, tl.load(sums + r) + state[0])
            tl.debug_barrier()


@triton.jit
def store_gradient(p_rows, s_d, known, begin, D, value, width: tl.constexpr):
    d = begin + tl.arange(0, width)
    mask = known[:, None] & (d < D)[None, :]
    tl.store(p_rows + d.to(tl.int64)[None, :] * s_d, value.to(p_rows.dtype.element_ty), mask=mask)


@triton.jit
def gradient(x, y, order, out, s_part, s_row, s_d, D, bound, fixed, unit, scale: tl.float64, margin: tl.float64,
             positive_margin: tl.float64, kind, tile, parts):  # fmt: skip
    """One part's share of the gradient of BM rows, or of a slice of its columns: out [parts, rows, D]."""
    if wanted(fixed, kind):
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
        total, sums = take_tiles(owned, row, y, part, parts, state, kind, numbers, tile, take_gradient, True, True)
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
