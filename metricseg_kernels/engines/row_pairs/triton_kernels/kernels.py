"""Kernels of the engine for pairs of rows, on the tiles of tiles.py. `kind` (../triton.py) holds the form's functions.

`stats`: a program sums one phase of the statistics of BM rows over its share of the tiles.
`symmetric_stats`: one sum of a set with itself, each pair of blocks once.
`gradient`: a program accumulates BM rows of sum_j W_ij y_j. For a set with itself W_ij is the weight of row i plus that
of row j, so one walk gives the whole gradient. Operations and derivation: docs/kernels/contrast.md.
"""

import triton
import triton.language as tl

from .tiles import (
    Numbers,
    Row,
    add_product,
    expand,
    find_spans,
    load_fields,
    load_groups,
    load_ids,
    load_rows,
    load_weights,
    no_sums,
    rounded,
    row_pointers,
    tiles_before,
    walk,
    walk_part,
)


@triton.jit
def wanted(fixed, kind):
    """Whether this launch is the one of two that fits the data."""
    if kind.TWIN:
        return (tl.load(fixed) != 0) == kind.FIXED
    else:
        return True


@triton.jit
def load_numbers(bounds, a, b, c, kind, tile):
    """Numbers of a launch; the bound only if FIXED."""
    constants = (tl.full((), a, tile.ACC), tl.full((), b, tile.ACC), tl.full((), c, tile.ACC))
    return Numbers(tl.load(bounds) if kind.FIXED else tl.full((), 0.0, tile.ACC), constants)


@triton.jit
def add_stats(s, blocks, pairs, state, tile):
    """state + the sums of a tile."""
    return pairs.kind.ADD(s, pairs, state)


@triton.jit(do_not_specialize=["parts", "earlier_parts", "earlier_programs"])
def stats(x, y, earlier, out, parts, earlier_parts, earlier_programs, a: tl.float64, b: tl.float64, c: tl.float64,
          kind, tile):  # fmt: skip
    """A phase of the sums of BM rows over one part of Y: out [parts, n, R]."""
    if wanted(earlier.fixed, kind):
        r = tl.program_id(0) * tile.BM + tl.arange(0, tile.BM)
        padded = tl.num_programs(0) * tile.BM
        numbers = load_numbers(earlier.bounds, a, b, c, kind, tile)
        coefs = ()
        if kind.LATER:
            coefs = kind.LOAD(earlier, earlier_parts, earlier_programs, r, padded, numbers, kind)
        group = load_groups(x, r)
        row = Row(group, load_ids(x, r, kind.WITH_IDS), coefs, tl.load(x.squares + r), r)
        rows = load_rows(x, r, tile)
        part = tl.program_id(1)
        start = kind.START(tl.zeros((tile.BM,), tile.ACC), numbers, kind)
        state = walk_part(rows, row, y, part, parts, start, kind, numbers, tile, add_stats)
        for i in tl.static_range(len(state)):
            p_sums = out + (part * len(state) + i).to(tl.int64) * padded + r
            tl.store(p_sums, tl.where(group < 0, start[i], state[i]))


@triton.jit
def add_both_ways(s, blocks, pairs, state, tile):
    """Sums of the rows; those of columns in other blocks are added to `out` [R], the program's own."""
    coefs, out, block = pairs.row.coefs
    terms = pairs.kind.TERMS(s, pairs, coefs)
    by_row, by_column = terms, terms
    if pairs.kind.WEIGHTED:
        by_row = terms * load_weights(pairs.y, pairs.columns, True)[None, :]
        by_column = terms * pairs.row.weights[:, None]
    tl.atomic_add(out + pairs.columns, tl.sum(by_column, 0), mask=pairs.columns // tile.BM != block, sem="relaxed")
    return (state[0] + tl.sum(by_row, 1),)


@triton.jit(do_not_specialize=["padded"])
def symmetric_stats(x, earlier, out, padded, a: tl.float64, b: tl.float64, c: tl.float64, kind, tile):
    """Sums of symmetric terms over negatives, or over all pairs, of a set with itself, each pair of blocks once.

    Block i is paired with the blocks at distances 0 to half way around. A program takes an even share of these pairs,
    row by row, and adds the sums of both blocks to its own row of out [programs, R]. Additions to an element are
    ordered by the barrier, so the sums are deterministic.
    """
    if wanted(earlier.fixed, kind):
        RATIO: tl.constexpr = tile.BM // tile.BN
        program, programs = tl.program_id(0), tl.num_programs(0)
        sums = out + program.to(tl.int64) * padded
        for begin in range(0, padded, tile.SCAN):
            r = begin + tl.arange(0, tile.SCAN)
            tl.store(sums + r, tl.zeros((tile.SCAN,), tile.ACC), mask=r < padded)
        tl.debug_barrier()
        first = tl.load(x.spans) // RATIO
        last = tl.cdiv(tl.load(x.spans + 1), RATIO)
        blocks = last - first
        far = blocks // 2 + 1
        pairs = blocks.to(tl.int64) * far
        begin, end = pairs * program // programs, pairs * (program + 1) // programs
        numbers = load_numbers(earlier.bounds, a, b, c, kind, tile)
        for index in range((begin // far).to(tl.int32), tl.cdiv(end, far).to(tl.int32)):
            near = tl.maximum(begin - tl.cast(index, tl.int64) * far, 0).to(tl.int32)
            until = tl.minimum(end - tl.cast(index, tl.int64) * far, far).to(tl.int32)
            # two blocks half way around from each other: only the first takes the pair
            until = tl.where((blocks % 2 == 0) & (index * 2 >= blocks), tl.minimum(until, far - 1), until)
            block = first + index
            r = block * tile.BM + tl.arange(0, tile.BM)
            group = load_groups(x, r)
            rows = load_rows(x, r, tile)
            coefs = kind.COEFS(group >= 0, numbers)
            weights = load_weights(x, r, kind.WEIGHTED)
            row = Row(group, load_ids(x, r, kind.WITH_IDS), (coefs, sums, block), tl.load(x.squares + r), weights)
            others, masked, mixed = find_spans(group, x, tile.SCAN)
            state = (tl.zeros((tile.BM,), tile.ACC),)
            for turn in range(2):
                # up to the last block, then on from the first
                shift = block - turn * blocks
                low, high = tl.maximum(shift + near, first) * RATIO, tl.minimum(shift + until, last) * RATIO
                high = tl.maximum(low, high)
                state = walk(rows, row, x, others, tiles_before(others, low), tiles_before(others, high), state, kind,
                             numbers, tile, add_both_ways, False)  # fmt: skip
                span = masked if kind.POSITIVES else mixed
                state = walk(rows, row, x, span, tiles_before(span, low), tiles_before(span, high), state, kind,
                             numbers, tile, add_both_ways, True)  # fmt: skip
            tl.atomic_add(sums + r, state[0], sem="relaxed")
            tl.debug_barrier()


@triton.jit
def add_gradient(s, blocks, pairs, state, tile):
    """(sum_j W_ij, sum_j W_ij y_j); W is the sum over the sides that have coefficients."""
    total, sums = state
    sides = ()
    if pairs.kind.BY_ROW:
        sides += (expand(pairs.row.coefs, 1),)
    if pairs.kind.BY_COLUMN:
        sides += (expand(load_fields(pairs.y.coefs, pairs.columns), 0),)
    w = rounded(pairs.kind.WEIGHTS(s, pairs, sides), tile)
    if pairs.kind.DISTANCES:
        total += tl.sum(w.to(total.dtype), 1)
    return total, add_product(w, blocks, pairs.y, pairs.columns, sums, tile)


@triton.jit(do_not_specialize=["rows", "parts"])
def gradient(x, y, earlier, order, out, rows, parts, a: tl.float64, b: tl.float64, c: tl.float64, kind, tile):
    """One part's share of the gradient of BM rows, or of a slice of its columns: out [parts, rows, WIDTH], unsorted."""
    if wanted(earlier.fixed, kind):
        r = tl.program_id(0) * tile.BM + tl.arange(0, tile.BM)
        group = load_groups(x, r)
        x_rows = load_rows(x, r, tile)
        coefs = ()
        if kind.BY_ROW:
            coefs = load_fields(x.coefs, r)
        weights = load_weights(x, r, kind.WEIGHTED and kind.BY_COLUMN)
        row = Row(group, load_ids(x, r, kind.WITH_IDS), coefs, tl.load(x.squares + r), weights)
        numbers = load_numbers(earlier.bounds, a, b, c, kind, tile)
        part = tl.program_id(2)
        state = (tl.zeros((tile.BM,), tile.ACC), no_sums(tile))
        total, sums = walk_part(x_rows, row, y, part, parts, state, kind, numbers, tile, add_gradient)
        known = r < rows
        r_out = part.to(tl.int64) * rows + tl.load(order + r, mask=known, other=0)
        p_rows = out + r_out[:, None] * tile.WIDTH
        factor = 1.0 / tl.load(earlier.bounds + 2)
        begin = tl.program_id(1) * tile.SLICE
        tl.debug_barrier()  # keeps the compiler from holding the rows of X in registers during the walk
        for i in tl.static_range(len(sums)):
            value = sums[i]
            d = begin + tl.arange(0, value.shape[1])
            if kind.DISTANCES:
                # sum_j W_ij (x_i - y_j)
                value = tl.load(row_pointers(x, r, tile) + d[None, :]).to(value.dtype) * total[:, None] - value
            value = tl.where((group < 0)[:, None], 0.0, value * factor)
            tl.store(p_rows + d[None, :], value.to(out.dtype.element_ty), mask=known[:, None])
            begin += value.shape[1]
