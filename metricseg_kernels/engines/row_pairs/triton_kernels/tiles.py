"""Stream of X Y^T tiles, each passed to an epilogue.

A program keeps BM rows of X and walks over tiles of BN rows of Y. Both sides are copies (sides.py), so that loads in
the walk are unmasked and 16 bytes wide. The copy moves A D elements; the walk reads A M D / BM of them,
mostly from L2. A row is a tuple of blocks, whose widths are powers of two that sum to the padded D.
Wide rows, and products without tensor cores, go in chunks of D in an inner loop. See docs/kernels/contrast.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ....core.triton_kernels import round_to_tf32


class Row(NamedTuple):
    """A program's BM rows of X."""

    groups: Any  # [BM]
    ids: Any  # [BM]
    coefs: Any  # tuple of [BM]: coefficients or statistics of these rows, in the order of the form's fields
    squares: Any  # [BM], for distances
    weights: Any  # [BM], as columns of each other


class Numbers(NamedTuple):
    """Run-time constants of a launch, in the type of the sums."""

    bound: Any  # of |<x, y>|, if FIXED
    constants: Any  # three of the form


class Earlier(NamedTuple):
    """Inputs of a launch: bounds of all rows, and the sums of an earlier phase."""

    bounds: Any  # [3]: of |<x, y>|, of the weights, and the unit of W
    fixed: Any  # [1], whether one bound serves all rows
    parts: Any = None  # [parts, n, R]
    sums: Any = None  # [programs, R], of a set with itself if `fixed`


class Pairs(NamedTuple):
    """One tile of pairs, as the functions of a form take it beside the products."""

    row: Any  # Row
    y: Any  # Side
    columns: Any  # [BN], rows of Y
    numbers: Any  # Numbers
    kind: Any  # Kind, see ../triton.py
    MASKED: Any  # whether there may be other pairs than negatives


@triton.jit
def load_groups(side, r):
    """Groups of rows r [k]; -1 for rows that take no part, padding included."""
    return tl.load(side.groups + r)


@triton.jit
def load_ids(side, r, WITH_IDS: tl.constexpr):
    """Ids of rows r [k]; without ids, their positions. Two rows of one group are the same row if these are equal."""
    if WITH_IDS:
        return tl.load(side.ids + r)
    else:
        return r


@triton.jit
def load_fields(fields, r):
    """Elements r [k] of each of these tensors."""
    values = ()
    for i in tl.static_range(len(fields)):
        values += (tl.load(fields[i] + r),)
    return values


@triton.jit
def load_weights(side, r, WEIGHTED: tl.constexpr):
    """Weights [k] of rows r as columns of the pairs; anything without weights."""
    if WEIGHTED:
        return tl.load(side.weights + r)
    else:
        return r


@triton.jit
def opposite_weights(pairs):
    """Factors of the sides of `WEIGHTS`: the weights of the columns [1, BN] and those of the rows [BM, 1]."""
    weights = ()
    if pairs.kind.BY_ROW:
        weights += (load_weights(pairs.y, pairs.columns, True)[None, :],)
    if pairs.kind.BY_COLUMN:
        weights += (pairs.row.weights[:, None],)
    return weights


@triton.jit
def expand(values, AXIS: tl.constexpr):
    """[k] each -> [k, 1] (rows, axis 1) or [1, k] (columns, axis 0)."""
    out = ()
    for i in tl.static_range(len(values)):
        out += (tl.expand_dims(values[i], AXIS),)
    return out


@triton.jit
def pair_masks(pairs):
    """(positive, negative) [BM, BN]; unspecified for rows of X that take no part."""
    group = load_groups(pairs.y, pairs.columns)[None, :]
    same = pairs.row.groups[:, None] == group
    positive = same & (group >= 0)
    if pairs.kind.SELF:
        ids = load_ids(pairs.y, pairs.columns, pairs.kind.WITH_IDS)[None, :]
        positive = positive & (pairs.row.ids[:, None] != ids)
    return positive, (group >= 0) & (same == 0)


@triton.jit
def counted(pairs):
    """Mask of the pairs that a phase sums over [BM, BN]."""
    positive, negative = pair_masks(pairs)
    if pairs.kind.POSITIVES and pairs.kind.NEGATIVES:
        return negative | positive
    elif pairs.kind.POSITIVES:
        return positive
    else:
        return negative


@triton.jit
def find_spans(groups, y, BLOCK: tl.constexpr):
    """Spans of tiles of Y for rows of these groups: (only other groups, masked, masked without the pure ones).

    Groups rise along the rows, so tiles of other groups surround those that may hold the rows' own; only the latter,
    and tiles at either end with rows that take no part, need masks. Pure tiles hold nothing but the rows' one group.
    A span is (start, number of tiles, holes), a hole (start, width). O(M / BN) per program.
    """
    first, last = tl.load(y.spans), tl.load(y.spans + 1)
    full, full_end = tl.load(y.spans + 2), tl.load(y.spans + 3)
    r_high = tl.max(groups, 0)
    r_low = tl.min(tl.where(groups < 0, r_high, groups), 0)
    if r_high < 0:
        last = first
        full, full_end = first, first
    own, own_end = full_end, full
    pure, pure_end, pures = full_end, full, 0
    for begin in range(full, full_end, BLOCK):
        t = begin + tl.arange(0, BLOCK)
        low = tl.load(y.low + t, mask=t < full_end, other=-1)
        high = tl.load(y.high + t, mask=t < full_end, other=-1)
        mine = (high >= r_low) & (low <= r_high) & (low >= 0)
        wholly = mine & (low == high) & (r_low == r_high)
        own = tl.minimum(own, tl.min(tl.where(mine, t, full_end), 0))
        own_end = tl.maximum(own_end, tl.max(tl.where(mine, t + 1, full), 0))
        pure = tl.minimum(pure, tl.min(tl.where(wholly, t, full_end), 0))
        pure_end = tl.maximum(pure_end, tl.max(tl.where(wholly, t + 1, full), 0))
        pures += tl.sum(wholly.to(tl.int32), 0)
    own_end = tl.maximum(own_end, own)
    if pures == 0 or pures < pure_end - pure:
        pure, pure_end = own, own
    others = full_end - full - (own_end - own)
    masked = last - first - others
    before, after = (full, own - full), (own_end, full_end - own_end)
    return (
        (full, others, ((own, own_end - own),)),
        (first, masked, (before, after)),
        (first, masked - (pure_end - pure), (before, (pure, pure_end - pure), after)),
    )


@triton.jit
def row_pointers(side, r, tile):
    return side.data + r.to(tl.int64)[:, None] * tile.WIDTH  # [R, 1]


@triton.jit
def load_blocks(p_rows, tile):
    """Whole rows, as blocks [R, k]."""
    blocks = ()
    begin = 0
    for i in tl.static_range(len(tile.KS)):
        blocks += (tl.load(p_rows + (begin + tl.arange(0, tile.KS[i]))[None, :]),)
        begin += tile.KS[i]
    return blocks


@triton.jit
def load_rows(x, r, tile):
    """Left operand of a program: the blocks of its rows, or, for rows in chunks, pointers to them."""
    if tile.CHUNK:
        return (row_pointers(x, r, tile),)
    else:
        return load_blocks(row_pointers(x, r, tile), tile)


@triton.jit
def similarity(rows, y, columns, tile):
    """(S [BM, BN], the blocks of Y); no blocks for rows in chunks."""
    s = tl.zeros((tile.BM, columns.shape[0]), tile.ACC)
    p_columns = row_pointers(y, columns, tile)
    blocks = ()
    if tile.CHUNK:
        for begin in range(0, tile.DEPTH, tile.CHUNK):
            d = (begin + tl.arange(0, tile.CHUNK))[None, :]
            # [BM, k] @ [k, BN]
            s = tl.dot(tl.load(rows[0] + d), tl.trans(tl.load(p_columns + d)), s, input_precision=tile.PRECISION,
                       out_dtype=tile.ACC)  # fmt: skip
    else:
        blocks = load_blocks(p_columns, tile)
        for i in tl.static_range(len(blocks)):
            s = tl.dot(rows[i], tl.trans(blocks[i]), s, input_precision=tile.PRECISION, out_dtype=tile.ACC)
    return s, blocks


@triton.jit
def tiles_before(span, t):
    """Number of tiles of a span before tile t."""
    start, count, holes = span
    n = tl.maximum(t - start, 0)
    for k in tl.static_range(len(holes)):
        n -= tl.minimum(tl.maximum(t - holes[k][0], 0), holes[k][1])
    return tl.minimum(n, count)


@triton.jit
def walk(rows, row, y, span, begin, end, state, kind, numbers, tile, EPILOGUE: tl.constexpr,
         MASKED: tl.constexpr):  # fmt: skip
    """Pass the tiles from begin to end, counted within a span, to the epilogue, which updates `state`.

    EPILOGUE(s, blocks, pairs, state, tile) -> state, with the products s [BM, BN] and the blocks of Y. Masks double the
    registers that a pair takes, so masked tiles are half as wide.
    """
    HALVES: tl.constexpr = 2 if MASKED else 1
    BN: tl.constexpr = tile.BN // HALVES
    start, _, holes = span
    for i in range(begin * HALVES, end * HALVES):
        t = start * HALVES + i
        for k in tl.static_range(len(holes)):
            t += tl.where(t >= holes[k][0] * HALVES, holes[k][1] * HALVES, 0)
        columns = t * BN + tl.arange(0, BN)
        s, blocks = similarity(rows, y, columns, tile)
        state = EPILOGUE(s, blocks, Pairs(row, y, columns, numbers, kind, MASKED), state, tile)
    return state


@triton.jit
def walk_part(rows, row, y, part, parts, state, kind, numbers, tile, EPILOGUE: tl.constexpr):
    """This part's share of the tiles that may hold pairs of the phase: of other groups for negatives, of the rows' own
    group for positives."""
    others, masked, mixed = find_spans(row.groups, y, tile.SCAN)
    if kind.NEGATIVES:
        begin, end = others[1] * part // parts, others[1] * (part + 1) // parts
        state = walk(rows, row, y, others, begin, end, state, kind, numbers, tile, EPILOGUE, False)
    span = masked if kind.POSITIVES else mixed
    begin, end = span[1] * part // parts, span[1] * (part + 1) // parts
    return walk(rows, row, y, span, begin, end, state, kind, numbers, tile, EPILOGUE, True)


@triton.jit
def rounded(w, tile):
    """W as the operand of a product."""
    if tile.PRECISION == "tf32":
        return round_to_tf32(w)
    else:
        return w.to(tile.DTYPE)


@triton.jit
def no_sums(tile):
    """Zero accumulators of W Y: one [BM, k] per block, or one [BM, SLICE]."""
    sums = ()
    if tile.CHUNK:
        sums += (tl.zeros((tile.BM, tile.SLICE), tile.ACC),)
    else:
        for i in tl.static_range(len(tile.KS)):
            sums += (tl.zeros((tile.BM, tile.KS[i]), tile.ACC),)
    return sums


@triton.jit
def add_product(w, blocks, y, columns, sums, tile):
    """sums + W Y."""
    p_columns = row_pointers(y, columns, tile)
    begin = tl.program_id(1) * tile.SLICE
    added = ()
    for i in tl.static_range(len(sums)):
        # Tensor cores take tf32 operands of the two products from different layouts in shared memory. The compiler
        # pipelines a load only into one, so the second product needs a copy (sm_90) or a load (sm_80) of its own.
        if tile.SECOND == "load":
            d = (begin + tl.arange(0, sums[i].shape[1]))[None, :]
            block = tl.load(p_columns + d, cache_modifier=".ca" if tile.PRECISION == "tf32" else "")
        elif tile.SECOND == "copy":
            block = blocks[i] + 0.0
        else:
            block = blocks[i]
        # [BM, BN] @ [BN, k]
        added += (tl.dot(w, block, sums[i], input_precision=tile.PRECISION, out_dtype=tile.ACC),)
        begin += sums[i].shape[1]
    return added


@triton.jit
def sum_parts(p_parts, parts, FIELDS: tl.constexpr, padded, r):
    """Sums of each field of rows r over all parts [parts, FIELDS, R]."""
    totals = ()
    for _ in tl.static_range(FIELDS):
        totals += (tl.zeros(r.shape, p_parts.dtype.element_ty),)
    for begin in range(0, parts, 8):
        part = begin + tl.arange(0, 8)[:, None]
        sums = ()
        for i in tl.static_range(FIELDS):
            p_rows = p_parts + (part * FIELDS + i).to(tl.int64) * padded + r[None, :]
            sums += (totals[i] + tl.sum(tl.load(p_rows, mask=part < parts, other=0.0), 0),)
        totals = sums
    return totals
