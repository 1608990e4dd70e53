"""Triton kernels of the contrast family, on the tiles of engines/row_pairs/triton_kernels.py.

`stats`: a program sums one phase of the statistics of BM rows over its share of the tiles.
`symmetric_lse`: the same sums for a set with itself, each pair of blocks once.
`gradient`: a program accumulates BM rows of sum_j W_ij y_j. For a set with itself W_ij is the weight of row i plus that
of row j, so one walk gives the whole gradient. Operations and derivation: docs/kernels/contrast.md.
"""

import triton
import triton.language as tl

from ...engines.row_pairs.triton_kernels import (
    Row,
    find_spans,
    load_groups,
    load_ids,
    load_rows,
    no_sums,
    row_pointers,
    tiles_before,
    walk,
    walk_part,
)
from .epilogues import (
    load_coefs,
    take_gradient,
    take_lse,
    take_margin,
    take_positives,
    take_symmetric_lse,
    wanted,
)


@triton.jit(do_not_specialize=["parts"])
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
    """A phase of the sums of BM rows over one part of Y: out [parts, 5, R]; before [2, R]: (m, L), for "positives".

    "lse" takes all tiles but those wholly of the rows' own class (in "all" those too). "positives" takes only tiles
    that may hold the own class, 1 / K of all for K even classes. "margin" takes all tiles.
    """
    if wanted(fixed, kind):
        r = tl.program_id(0) * tile.BM + tl.arange(0, tile.BM)
        group = load_groups(x, r)
        ids = load_ids(x, r, kind.WITH_IDS)
        rows = load_rows(x, r, tile)
        zero = tl.zeros((tile.BM,), tile.ACC)
        part = tl.program_id(1)
        padded = tl.num_programs(0) * tile.BM
        if kind.PHASE == "margin":
            row = Row(group, ids, zero, tl.load(x.squares + r))
            numbers = (tl.full((), margin, tile.ACC), tl.full((), positive_margin, tile.ACC))
            state = (zero, zero, zero, zero)
            state = walk_part(rows, row, y, part, parts, state, kind, numbers, tile, take_margin, True, True)
            sums = (state[0], state[1], state[2], state[3], zero)
        elif kind.PHASE == "positives":
            row = Row(group, ids, (tl.load(before + r), tl.load(before + padded + r)), zero)
            numbers = (tl.full((), scale, tile.ACC), zero)
            state = (zero, zero, zero)
            state = walk_part(rows, row, y, part, parts, state, kind, numbers, tile, take_positives, False, True)
            sums = (zero, zero, state[0], state[1], state[2])
        else:
            m = zero + float("-inf")
            if kind.FIXED:
                m = zero + tl.load(bound)
            row = Row(group, ids, zero, zero)
            numbers = (tl.full((), scale, tile.ACC), zero)
            state = (m, zero)
            state = walk_part(rows, row, y, part, parts, state, kind, numbers, tile, take_lse, True,
                               kind.NAME == "all")  # fmt: skip
            sums = (state[0], tl.log(state[1]), zero, zero, zero)
        for i in tl.static_range(5):
            p_sums = out + (part * 5 + i).to(tl.int64) * padded + r
            tl.store(p_sums, tl.where(group < 0, float("-inf") if i == 1 and kind.PHASE == "lse" else 0.0, sums[i]))


@triton.jit(do_not_specialize=["padded"])
def symmetric_lse(x, out, padded, bound, fixed, scale: tl.float64, kind, tile):
    """Sums of exp((s - bound) / t) over the denominators of a set with itself, each pair of blocks once.

    Block i is paired with the blocks at distances 0 to half way around. A program takes an even share of these pairs,
    row by row, and adds the sums of both blocks to its own row of out [programs, R], zero before. Additions to an
    element are ordered by the barrier, so the sums are deterministic.
    """
    if wanted(fixed, kind):
        RATIO: tl.constexpr = tile.BM // tile.BN
        program, programs = tl.program_id(0), tl.num_programs(0)
        sums = out + program.to(tl.int64) * padded
        first = tl.load(x.spans) // RATIO
        last = tl.cdiv(tl.load(x.spans + 1), RATIO)
        blocks = last - first
        far = blocks // 2 + 1
        pairs = blocks.to(tl.int64) * far
        begin, end = pairs * program // programs, pairs * (program + 1) // programs
        numbers = (tl.full((), scale, tile.ACC), tl.load(bound))
        for index in range((begin // far).to(tl.int32), tl.cdiv(end, far).to(tl.int32)):
            near = tl.maximum(begin - tl.cast(index, tl.int64) * far, 0).to(tl.int32)
            until = tl.minimum(end - tl.cast(index, tl.int64) * far, far).to(tl.int32)
            # two blocks half way around from each other: only the first takes the pair
            until = tl.where((blocks % 2 == 0) & (index * 2 >= blocks), tl.minimum(until, far - 1), until)
            block = first + index
            r = block * tile.BM + tl.arange(0, tile.BM)
            group = load_groups(x, r)
            rows = load_rows(x, r, tile)
            m = tl.where(group < 0, float("inf"), numbers[1])
            row = Row(group, load_ids(x, r, kind.WITH_IDS), (m, sums, block), m)
            others, masked, mixed = find_spans(group, x, tile.SCAN)
            state = (tl.zeros((tile.BM,), tile.ACC),)
            for turn in range(2):
                # up to the last block, then on from the first
                shift = block - turn * blocks
                low, high = tl.maximum(shift + near, first) * RATIO, tl.minimum(shift + until, last) * RATIO
                high = tl.maximum(low, high)
                state = walk(rows, row, x, others, tiles_before(others, low), tiles_before(others, high), state, kind,
                             numbers, tile, take_symmetric_lse, False)  # fmt: skip
                if kind.NAME == "all":
                    state = walk(rows, row, x, masked, tiles_before(masked, low), tiles_before(masked, high), state,
                                 kind, numbers, tile, take_symmetric_lse, True)  # fmt: skip
                else:
                    state = walk(rows, row, x, mixed, tiles_before(mixed, low), tiles_before(mixed, high), state,
                                 kind, numbers, tile, take_symmetric_lse, True)  # fmt: skip
            tl.atomic_add(sums + r, state[0], sem="relaxed")
            tl.debug_barrier()


@triton.jit(do_not_specialize=["rows", "parts"])
def gradient(x, y, order, out, rows, bound, fixed, unit, scale: tl.float64, margin: tl.float64,
             positive_margin: tl.float64, kind, tile, parts):  # fmt: skip
    """One part's share of the gradient of BM rows, or of a slice of its columns: out [parts, rows, WIDTH], unsorted."""
    if wanted(fixed, kind):
        r = tl.program_id(0) * tile.BM + tl.arange(0, tile.BM)
        group = load_groups(x, r)
        x_rows = load_rows(x, r, tile)
        zero = tl.zeros((tile.BM,), tile.ACC)
        coefs = (zero, zero)
        if kind.BY_ROW:
            coefs = load_coefs(x, r, kind)
        row = Row(group, load_ids(x, r, kind.WITH_IDS), coefs, tl.load(x.squares + r))
        if kind.NAME == "margin":
            numbers = (tl.full((), margin, tile.ACC), tl.full((), positive_margin, tile.ACC))
        elif kind.FIXED:
            numbers = (tl.full((), scale, tile.ACC), tl.load(bound))
        else:
            numbers = (tl.full((), scale, tile.ACC), tl.full((), 0.0, tile.ACC))
        part = tl.program_id(2)
        state = (zero, no_sums(tile))
        total, sums = walk_part(x_rows, row, y, part, parts, state, kind, numbers, tile, take_gradient, True, True)
        known = r < rows
        r_out = part.to(tl.int64) * rows + tl.load(order + r, mask=known, other=0)
        p_rows = out + r_out[:, None] * tile.WIDTH
        factor = 1.0 / tl.load(unit)
        begin = tl.program_id(1) * tile.SLICE
        tl.debug_barrier()  # keeps the compiler from holding the rows of X in registers during the walk
        for i in tl.static_range(len(sums)):
            value = sums[i]
            d = begin + tl.arange(0, value.shape[1])
            if kind.NAME == "margin":
                value = tl.load(row_pointers(x, r, tile) + d[None, :]).to(value.dtype) * total[:, None] - value
            value = tl.where((group < 0)[:, None], 0.0, value * factor)
            tl.store(p_rows + d[None, :], value.to(out.dtype.element_ty), mask=known[:, None])
            begin += value.shape[1]
