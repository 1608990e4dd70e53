"""Kernels of the anchors family: the choice as csrc/anchors/sample.cuh has it, and rows out of a map and back.

`count_cells`: the pixels of each. `plan`: slots, quotas, likely limits. `collect`: pixels whose key is below the limit
of their cell. `place`: the rank of a key in its cell is the row of its pixel, after `repair` of a cell with too few or
too many such pixels. `gather`, `scatter`: rows of pixels, and their gradients. Derivation: docs/kernels/anchors.md.
"""

import triton
import triton.language as tl

from ..core.triton_kernels import divide, root
from ..engines.pixel_rows.triton_kernels import VARYING, load_labels, locate, pixel_offsets

VARYING = [*VARYING, "K", "slots", "S", "max_views", "min_pixels", "ignore_label", "C"]
GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
EVERY = tl.constexpr(0xFFFFFFFFFFFFFFFF)
PIXELS, SLOTS = tl.constexpr(0), tl.constexpr(1)  # streams of keys
LEAST = tl.constexpr(-(2**63))
SIGN = tl.constexpr(2**63)


@triton.jit
def mix(z):
    z = (z ^ (z >> 30)) * tl.cast(0xBF58476D1CE4E5B9, tl.uint64)
    z = (z ^ (z >> 27)) * tl.cast(0x94D049BB133111EB, tl.uint64)
    return z ^ (z >> 31)


@triton.jit
def keys(seed, STREAM: tl.constexpr, i):
    """The keys of counters i, uint64, of which no two are equal."""
    base = tl.load(seed).to(tl.uint64, bitcast=True) + tl.cast(GOLDEN, tl.uint64) * (STREAM + 1)
    return mix(mix(base) + i.to(tl.uint64) * tl.cast(GOLDEN, tl.uint64))


@triton.jit
def capacity(n, cells):
    """Number of candidates that cells with n rows in all have room for."""
    return 2 * n + 96 * cells


@triton.jit
def load_pixels(map, b, n, N):
    """[n] int64 of image b, 0 beyond N."""
    return tl.load(map.data + tl.cast(b, tl.int64) * map.b + pixel_offsets(map, n), mask=n < N, other=0).to(tl.int64)


@triton.jit
def cells_of(labels, predictions, first, b, n, K, N, ignore_index):
    """[n] int64: 2 (image K + class) + group, 0 for preferred pixels; -1 without a class."""
    label = load_labels(labels, b, n, K, N, ignore_index).to(tl.int64)
    cell = 2 * (tl.cast(b, tl.int64) * K + label)
    if predictions.data is not None:
        second = load_pixels(predictions, b, n, N) == label
        if first.data is not None:
            second = second & (load_pixels(first, b, n, N) == 0)
        cell += second.to(tl.int64)
    elif first.data is not None:
        cell += (load_pixels(first, b, n, N) == 0).to(tl.int64)
    return tl.where(label >= 0, cell, -1)


@triton.jit(do_not_specialize=VARYING)
def count_cells(labels, predictions, first, have, bad, ignore_index, K, N, tiles, BN: tl.constexpr,
                RUN: tl.constexpr):  # fmt: skip
    """have [2 B K] plus the pixels of each cell, once for each change of cell in a run; bad [2] plus the number of
    labels out of range, and the largest of them, its sign bit flipped."""
    _, b, lane = locate(1, tiles, BN)
    last = tl.full((BN,), -1, tl.int64)
    run = tl.zeros((BN,), tl.int32)
    outside = tl.zeros((BN,), tl.int64)
    largest = tl.full((BN,), LEAST, tl.int64)
    for i in range(RUN):
        n = lane * RUN + i
        label = load_pixels(labels, b, n, N)
        wrong = (n < N) & (label != ignore_index) & ((label < 0) | (label >= K))
        outside += wrong.to(tl.int64)
        largest = tl.where(wrong, tl.maximum(largest, label), largest)
        cell = cells_of(labels, predictions, first, b, n, K, N, ignore_index)
        changed = cell != last
        tl.atomic_add(have + last, run, mask=changed & (last >= 0))
        run = tl.where(changed, 0, run) + 1
        last = cell
    tl.atomic_add(have + last, run, mask=last >= 0)
    if tl.sum(outside, 0) > 0:
        tl.atomic_add(bad, tl.sum(outside, 0))
        flipped = tl.max(largest, 0).to(tl.uint64, bitcast=True) ^ tl.cast(SIGN, tl.uint64)
        tl.atomic_max((bad + 1).to(tl.pointer_type(tl.uint64), bitcast=True), flipped)


@triton.jit
def load_slots(have, s, slots, min_pixels):
    """(pixels in group 0, in group 1, whether the slot is open)."""
    have_0 = tl.load(have + 2 * s, mask=s < slots, other=0).to(tl.int64)
    have_1 = tl.load(have + 2 * s + 1, mask=s < slots, other=0).to(tl.int64)
    return have_0, have_1, (s < slots) & (have_0 + have_1 > min_pixels)


@triton.jit
def choose(chosen, hits, rank, cell, have, n, place, r, deviations):
    """A row of `chosen` for each cell with a quota n, and its rank r; a limit that is likely to leave enough keys."""
    taken = n > 0
    tl.store(rank + cell, tl.where(taken, r, -1).to(tl.int32), mask=have >= 0)
    wanted = n.to(tl.float64) + deviations * (tl.sqrt(n.to(tl.float64)) + 2.5)
    share = wanted / tl.maximum(have, 1).to(tl.float64)
    limit = tl.where(
        share >= 1.0, EVERY, (tl.minimum(tl.maximum(share, 0.0), 1.0) * 4611686018427387904.0).to(tl.uint64) << 2
    )
    p_chosen = chosen + 4 * r
    tl.store(p_chosen, cell, mask=taken)
    tl.store(p_chosen + 1, n, mask=taken)
    tl.store(p_chosen + 2, place, mask=taken)
    tl.store(p_chosen + 3, limit.to(tl.int64, bitcast=True), mask=taken)
    tl.store(hits + r, tl.zeros(r.shape, tl.int32), mask=taken)


@triton.jit(do_not_specialize=VARYING)
def plan(seed, have, bad, rank, chosen, hits, used, found, slots, S, max_views, min_pixels, ignore_label, deviations,
         HALF: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """rank [2 B K], a cell's place in chosen [cells, 4] = (cell, quota, first row, limit), or -1; hits, zeros; used
    [], chosen cells; of the result `found`: the rows that no cell has, the number of those that one has, and `bad`."""
    i = tl.arange(0, BLOCK)
    opened = tl.zeros((BLOCK,), tl.int64)
    for s0 in range(0, slots, BLOCK):
        opened += load_slots(have, s0 + i, slots, min_pixels)[2].to(tl.int64)
    every = tl.sum(opened, 0)
    # the largest key of as many slots as there are samples
    low = tl.full((), 0, tl.uint64)
    high = tl.full((), EVERY, tl.uint64)
    for _ in range(tl.where(every > S, 64, 0)):
        middle = low + ((high - low) >> 1)
        below = tl.zeros((BLOCK,), tl.int64)
        for s0 in range(0, slots, BLOCK):
            open_ = load_slots(have, s0 + i, slots, min_pixels)[2]
            below += (open_ & (keys(seed, SLOTS, s0 + i) <= middle)).to(tl.int64)
        enough = tl.sum(below, 0) >= S
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)

    views = tl.minimum(tl.maximum(S // tl.maximum(every, 1), 1), max_views)
    rows = tl.full((), 0, tl.int64)
    cells = tl.full((), 0, tl.int64)
    for s0 in range(0, slots, BLOCK):
        s = s0 + i
        have_0, have_1, open_ = load_slots(have, s, slots, min_pixels)
        open_ = open_ & (keys(seed, SLOTS, s) <= high)
        first = views + tl.zeros_like(have_0)
        if HALF:
            first = tl.maximum(views - have_1, views // 2)
        n_0 = tl.where(open_, tl.minimum(have_0, first), 0)
        n_1 = tl.where(open_, tl.minimum(have_1, views - n_0), 0)
        n, taken = n_0 + n_1, (n_0 > 0).to(tl.int64) + (n_1 > 0).to(tl.int64)
        place = rows + tl.cumsum(n, 0) - n
        r = cells + tl.cumsum(taken, 0) - taken
        cell = 2 * s.to(tl.int64)
        choose(chosen, hits, rank, cell, tl.where(s < slots, have_0, -1), n_0, place, r, deviations)
        r_1 = r + (n_0 > 0).to(tl.int64)
        choose(chosen, hits, rank, cell + 1, tl.where(s < slots, have_1, -1), n_1, place + n_0, r_1, deviations)
        rows += tl.sum(n, 0)
        cells += tl.sum(taken, 0)
    for row0 in range(0, S, BLOCK):
        unused = (row0 + i < S) & (row0 + i >= rows)
        tl.store(found.index + row0 + i, tl.full((BLOCK,), -1, tl.int64), mask=unused)
        tl.store(found.labels + row0 + i, tl.zeros((BLOCK,), tl.int64) + ignore_label, mask=unused)
    tl.store(found.count, rows)
    tl.store(used, cells)
    outside = tl.load(bad)
    tl.store(found.bad, outside)
    tl.store(found.bad + 1, tl.where(outside > 0, tl.load(bad + 1) ^ LEAST, 0))


@triton.jit(do_not_specialize=VARYING)
def collect(labels, predictions, first, seed, rank, chosen, hits, candidates, ignore_index, K, N, tiles,
            BN: tl.constexpr):  # fmt: skip
    """candidates [., 2] = (key, pixel) of each chosen cell, in any order; those beyond their capacity are counted."""
    _, b, n = locate(1, tiles, BN)
    cell = cells_of(labels, predictions, first, b, n, K, N, ignore_index)
    r = tl.load(rank + cell, mask=cell >= 0, other=-1)
    pixel = tl.cast(b, tl.int64) * N + n
    key = keys(seed, PIXELS, pixel)
    p_chosen = chosen + 4 * r.to(tl.int64)
    limit = tl.load(p_chosen + 3, mask=r >= 0, other=0).to(tl.uint64, bitcast=True)
    hit = (r >= 0) & (key <= limit)
    at = tl.atomic_add(hits + r, 1, mask=hit)
    kept = hit & (at < capacity(tl.load(p_chosen + 1, mask=hit, other=0), 1))
    p = candidates + 2 * (capacity(tl.load(p_chosen + 2, mask=hit, other=0), r.to(tl.int64)) + at)
    tl.store(p, key.to(tl.int64, bitcast=True), mask=kept)
    tl.store(p + 1, pixel, mask=kept)


@triton.jit
def repair(labels, predictions, first, seed, cell, n, p_candidates, ignore_index, K, N, BN: tl.constexpr):
    """The n pixels of a cell with the smallest keys, whatever its limit, as its candidates."""
    b = cell // (2 * K)
    i = tl.arange(0, BN)
    low = tl.full((), 0, tl.uint64)
    high = tl.full((), EVERY, tl.uint64)
    for _ in range(64):
        middle = low + ((high - low) >> 1)
        below = tl.zeros((BN,), tl.int64)
        for n0 in range(0, N, BN):
            mine = cells_of(labels, predictions, first, b, n0 + i, K, N, ignore_index) == cell
            below += (mine & (keys(seed, PIXELS, b * N + n0 + i) <= middle)).to(tl.int64)
        enough = tl.sum(below, 0) >= n
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    kept = tl.full((), 0, tl.int64)
    for n0 in range(0, N, BN):
        pixel = b * N + n0 + i
        key = keys(seed, PIXELS, pixel)
        mine = cells_of(labels, predictions, first, b, n0 + i, K, N, ignore_index) == cell
        hit = mine & (key <= high)
        at = kept + tl.cumsum(hit.to(tl.int64), 0) - 1
        tl.store(p_candidates + 2 * at, key.to(tl.int64, bitcast=True), mask=hit)
        tl.store(p_candidates + 2 * at + 1, pixel, mask=hit)
        kept += tl.sum(hit.to(tl.int64), 0)
    tl.debug_barrier()  # the candidates are read by other threads


@triton.jit(do_not_specialize=VARYING)
def place(labels, predictions, first, seed, chosen, hits, used, candidates, found, ignore_index, K, N, parts,
          BN: tl.constexpr, BC: tl.constexpr):  # fmt: skip
    """The rows of a cell, by key; `parts` programs share its candidates. If these are fewer than its quota, or more
    than their capacity, the first program finds others, and places them alone."""
    r, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    known = r < tl.load(used)
    here = tl.load(hits + r, mask=known, other=0).to(tl.int64)
    cell = tl.load(chosen + 4 * r, mask=known, other=0)
    n = tl.load(chosen + 4 * r + 1, mask=known, other=0)
    row = tl.load(chosen + 4 * r + 2, mask=known, other=0)
    p = candidates + 2 * capacity(row, r)
    wrong = (here < n) | (here > capacity(n, 1))
    if wrong & (part == 0):
        repair(labels, predictions, first, seed, cell, n, p, ignore_index, K, N, BN)
    here = tl.where(wrong, tl.where(part == 0, n, 0), here)
    lane = tl.arange(0, BC)
    for begin in range(part * BC, here, tl.where(wrong, 1, parts) * BC):
        i = begin + lane
        key = tl.load(p + 2 * i, mask=i < here, other=-1).to(tl.uint64, bitcast=True)
        smaller = tl.zeros((BC,), tl.int32)
        for j0 in range(0, here, BC):
            j = j0 + lane
            other = tl.load(p + 2 * j, mask=j < here, other=-1).to(tl.uint64, bitcast=True)
            smaller += tl.sum(((j < here)[None, :] & (other[None, :] < key[:, None])).to(tl.int32), 1)
        mask = (i < here) & (smaller < n)
        tl.store(found.index + row + smaller, tl.load(p + 2 * i + 1, mask=mask, other=0), mask=mask)
        tl.store(found.labels + row + smaller, tl.zeros((BC,), tl.int64) + cell // 2 % K, mask=mask)


@triton.jit
def map_row(map, pixel, c, N):
    """Pointers to channels c of a pixel of the batch."""
    b, n = pixel // tl.maximum(N, 1), pixel % tl.maximum(N, 1)
    return map.data + b * map.b + pixel_offsets(map, n) + c.to(tl.int64) * map.c


@triton.jit(do_not_specialize=VARYING)
def gather(features, index, rows, norms, C, N, pixels, EPS: tl.constexpr, NORMALIZE: tl.constexpr,
           BC: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """rows [S, C] = x / max(|x|, eps) and norms [S] = |x|, a program each; zeros for -1, NaN for no pixel."""
    s = tl.program_id(0).to(tl.int64)
    pixel = tl.load(index + s)
    known = (pixel >= 0) & (pixel < pixels)
    lane = tl.arange(0, BC)
    squares = tl.zeros((BC,), ACC)
    for c0 in range(0, C, BC):
        c = c0 + lane
        x = tl.load(map_row(features, pixel, c, N), mask=known & (c < C), other=0.0).to(ACC)
        squares += x * x
    norm = root(tl.sum(squares, 0))
    tl.store(norms + s, norm)
    divisor = tl.full((), 1.0, ACC)
    if NORMALIZE:  # NaN stays
        divisor = tl.where(norm == 0.0, 1.0, tl.where(norm < EPS, EPS, norm))
    absent = tl.where(pixel == -1, 0.0, float("nan"))
    for c0 in range(0, C, BC):
        c = c0 + lane
        x = tl.load(map_row(features, pixel, c, N), mask=known & (c < C), other=0.0).to(ACC)
        x = divide(tl.where(known, x, absent), divisor + tl.zeros_like(x))
        tl.store(rows + s * C + c, x.to(rows.dtype.element_ty), mask=c < C)


@triton.jit
def add_run(grad_rows, step, stride, order, first, last, c, C, ACC: tl.constexpr):
    """The sum of the gradients [c] of rows order[first:last]."""
    total = tl.zeros(c.shape, ACC)
    for i in range(first, last):
        p = grad_rows + tl.load(order + i) * step + c.to(tl.int64) * stride
        total += tl.load(p, mask=c < C, other=0.0).to(ACC)
    return total


@triton.jit(do_not_specialize=VARYING)
def scatter(grad_rows, step, stride, rows, norms, index, order, grad, S, C, N, pixels, EPS: tl.constexpr,
            NORMALIZE: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr):  # fmt: skip
    """grad of a pixel, by the program at the first of its run of sorted indices. With G the sum over the run:
    (G - y <y, G>) / |x|, or G / eps if |x| < eps, or 0 if |x| = 0."""
    first = tl.program_id(0)
    pixel = tl.load(index + first)
    before = tl.load(index + first - 1, mask=first > 0, other=-1)
    if (pixel >= 0) & (pixel < pixels) & (before != pixel):
        last = first + 1
        same = tl.load(index + last, mask=last < S, other=-1) == pixel
        while same:
            last += 1
            same = tl.load(index + last, mask=last < S, other=-1) == pixel
        lane = tl.arange(0, BC)
        row = tl.load(order + first)
        norm = tl.full((), 1.0, ACC)
        divisor = norm
        along = tl.full((), 0.0, ACC)
        if NORMALIZE:
            norm = tl.load(norms + row)
            divisor = tl.where(norm < EPS, EPS, norm)
            if (norm <= EPS) == 0:
                products = tl.zeros((BC,), ACC)
                for c0 in range(0, C, BC):
                    c = c0 + lane
                    y = tl.load(rows + row * C + c, mask=c < C, other=0.0).to(ACC)
                    products += y * add_run(grad_rows, step, stride, order, first, last, c, C, ACC)
                along = tl.sum(products, 0)
        for c0 in range(0, C, BC):
            c = c0 + lane
            total = add_run(grad_rows, step, stride, order, first, last, c, C, ACC)
            if NORMALIZE:
                y = tl.load(rows + row * C + c, mask=c < C, other=0.0).to(ACC)
                total = tl.where(norm <= EPS, total, total - y * along)
            total = tl.where(norm == 0.0, 0.0, divide(total, divisor + tl.zeros_like(total)))
            tl.store(map_row(grad, pixel, c, N), total.to(grad.data.dtype.element_ty), mask=c < C)
