"""The stream of X Y^T tiles in Triton: what every op on pairs of rows shares. An op adds an epilogue.

A program owns BM rows of X and walks over tiles of BN rows of Y. Both sides come as copies that `gather_rows` makes:
rows in sorted order, padded with zeros to whole tiles and to a multiple of 16 columns, so that any D, any stride and
any order of the caller's rows meet unmasked 16-byte loads in the walk. The copy reads and writes A D elements once; the
walk reads A M D / BM of them (from L2, since neighbouring programs walk over the same tiles), and multiplies 2 A M D
times: at A = 262,144 and D = 64 the copy is 67 MB, 25 us of an H100, before 9 Tflop.

A row is a tuple of blocks whose widths are powers of two that sum to the padded D, so that D = 96 costs 64 + 32 and not
128. While they fit, the blocks of X stay in shared memory or registers for the whole walk, and the walk is one
pipelined loop; wider rows, and fp32 and fp64 products without tensor cores, go in chunks of D in an inner loop.

Groups rise along the rows. So for one program the tiles of Y are: some without any row that takes part, perhaps a tile
at either end with some, tiles that hold only rows of other groups, and in their midst those that may hold its own.
`find_spans` finds these spans in the tiles' least and largest groups, O(M / BN) per program, and never takes the order
for granted: where a span has a hole, it is widened. Only the own span and the two ends need masks.
"""

import triton
import triton.language as tl


@triton.jit
def round_to_tf32(x):
    """To nearest, what the tensor cores would otherwise cut off; infinities stay."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x0FFF + ((bits >> 13) & 1)) & -8192
    return tl.where((bits & 0x7F800000) == 0x7F800000, x, rounded.to(tl.float32, bitcast=True))


@triton.jit
def gather_rows(features, s_row, s_d, order, groups, rows, D, data, squares, low, high, WIDTH: tl.constexpr,
                ROWS: tl.constexpr, BLOCK: tl.constexpr, ROUND: tl.constexpr):  # fmt: skip
    """One tile of ROWS rows: data [R, WIDTH], their squared norms [R], and the tile's least and largest group."""
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    known = r < rows
    p_rows = features + tl.load(order + r, mask=known, other=0).to(tl.int64)[:, None] * s_row
    total = tl.zeros((ROWS,), squares.dtype.element_ty)
    for begin in range(0, WIDTH, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        x = tl.load(p_rows + d.to(tl.int64)[None, :] * s_d, mask=known[:, None] & (d < D)[None, :], other=0.0)
        x = x.to(data.dtype.element_ty)
        if ROUND:
            x = round_to_tf32(x)
        tl.store(data + r.to(tl.int64)[:, None] * WIDTH + d[None, :], x, mask=(d < WIDTH)[None, :])
        wide = x.to(total.dtype)
        total += tl.sum(wide * wide, 1)
    tl.store(squares + r, total)
    group = tl.load(groups + r, mask=known, other=-1)
    tl.store(low + tl.program_id(0), tl.min(group, 0))
    tl.store(high + tl.program_id(0), tl.max(group, 0))


@triton.jit
def load_groups(side, r):
    """Groups of rows r; -1 in the padding."""
    return tl.load(side.groups + r, mask=r < side.rows, other=-1)


@triton.jit
def load_ids(side, r):
    """What two rows of one group must share to be one row: an id, or the position."""
    if side.ids is None:
        return r
    else:
        return tl.load(side.ids + r, mask=r < side.rows, other=-1)


@triton.jit
def find_alive(low, high, tiles, spans, BLOCK: tl.constexpr):
    """spans [4]: the tiles [0, 1) with a row that takes part, and those [2, 3) among them of which every row does."""
    first, last = tiles, 0
    full, full_end, fulls = tiles, 0, 0
    for begin in range(0, tiles, BLOCK):
        t = begin + tl.arange(0, BLOCK)
        some = tl.load(high + t, mask=t < tiles, other=-1) >= 0
        every = tl.load(low + t, mask=t < tiles, other=-1) >= 0
        first = tl.minimum(first, tl.min(tl.where(some, t, tiles), 0))
        last = tl.maximum(last, tl.max(tl.where(some, t + 1, 0), 0))
        full = tl.minimum(full, tl.min(tl.where(every, t, tiles), 0))
        full_end = tl.maximum(full_end, tl.max(tl.where(every, t + 1, 0), 0))
        fulls += tl.sum(every.to(tl.int32), 0)
    first = tl.minimum(first, last)
    if fulls == 0 or fulls < full_end - full:
        full, full_end = first, first
    tl.store(spans, first)
    tl.store(spans + 1, last)
    tl.store(spans + 2, full)
    tl.store(spans + 3, full_end)


@triton.jit
def find_spans(groups, y, BLOCK: tl.constexpr):
    """For rows of these groups, tiles of Y as (start, how many, holes): those that hold only other groups, those that
    need masks, and these without a span wholly of the rows' one group. A hole is (from, width)."""
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
def load_owned(x, r, tile):
    """What a program keeps of its rows: their blocks, or only where they are."""
    if tile.CHUNK:
        return (row_pointers(x, r, tile),)
    else:
        return load_blocks(row_pointers(x, r, tile), tile)


@triton.jit
def similarity(owned, y, columns, tile):
    """(S [BM, BN], the blocks of Y that made it, where they were loaded whole)."""
    s = tl.zeros((tile.BM, columns.shape[0]), tile.ACC)
    p_columns = row_pointers(y, columns, tile)
    blocks = ()
    if tile.CHUNK:
        for begin in range(0, y.depth, tile.CHUNK):
            d = (begin + tl.arange(0, tile.CHUNK))[None, :]
            # [BM, k] @ [k, BN]
            s = tl.dot(tl.load(owned[0] + d), tl.trans(tl.load(p_columns + d)), s, input_precision=tile.PRECISION,
                       out_dtype=tile.ACC)  # fmt: skip
    else:
        blocks = load_blocks(p_columns, tile)
        for i in tl.static_range(len(blocks)):
            s = tl.dot(owned[i], tl.trans(blocks[i]), s, input_precision=tile.PRECISION, out_dtype=tile.ACC)
    return s, blocks


@triton.jit
def tiles_before(span, t):
    """How many tiles of a span lie before tile t."""
    start, count, holes = span
    n = tl.maximum(t - start, 0)
    for k in tl.static_range(len(holes)):
        n -= tl.minimum(tl.maximum(t - holes[k][0], 0), holes[k][1])
    return tl.minimum(n, count)


@triton.jit
def walk(owned, row, y, span, begin, end, state, kind, numbers, tile, EPILOGUE: tl.constexpr,
         MASKED: tl.constexpr):  # fmt: skip
    """Takes the tiles from begin to end, counted within a span, into `state`.

    EPILOGUE(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED) -> state. `row` is what the op knows of the
    program's rows, `numbers` its constants, `state` what it sums. Masks double what a pair keeps in registers: masked
    tiles go in halves.
    """
    HALVES: tl.constexpr = 2 if MASKED else 1
    BN: tl.constexpr = tile.BN // HALVES
    start, _, holes = span
    for i in range(begin * HALVES, end * HALVES):
        t = start * HALVES + i
        for k in tl.static_range(len(holes)):
            t += tl.where(t >= holes[k][0] * HALVES, holes[k][1] * HALVES, 0)
        columns = t * BN + tl.arange(0, BN)
        s, blocks = similarity(owned, y, columns, tile)
        state = EPILOGUE(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED)
    return state


@triton.jit
def rounded(w, tile):
    """W as a product takes it."""
    if tile.PRECISION == "tf32":
        return round_to_tf32(w)
    else:
        return w.to(tile.DTYPE)


@triton.jit
def no_sums(tile):
    """Accumulators of W Y: one [BM, k] per block, or the one of a slice of D."""
    sums = ()
    if tile.CHUNK:
        sums += (tl.zeros((tile.BM, tile.SLICE), tile.ACC),)
    else:
        for i in tl.static_range(len(tile.KS)):
            sums += (tl.zeros((tile.BM, tile.KS[i]), tile.ACC),)
    return sums


@triton.jit
def load_slice(side, r, tile):
    d = tl.program_id(1) * tile.SLICE + tl.arange(0, tile.SLICE)
    return (tl.load(row_pointers(side, r, tile) + d[None, :]),)


@triton.jit
def weigh(w, blocks, y, columns, sums, tile):
    """sums + W Y."""
    if tile.CHUNK:
        blocks = load_slice(y, columns, tile)
    added = ()
    for i in tl.static_range(len(sums)):
        # [BM, BN] @ [BN, k]
        added += (tl.dot(w, blocks[i], sums[i], input_precision=tile.PRECISION, out_dtype=tile.ACC),)
    return added
