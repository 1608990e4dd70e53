"""Kernels of the segments family. Derivation, tiles and order of sums: docs/kernels/segments.md.

`start`: norms of pixels and first clusters. `assign`: BN pixels against all centers, BK at a time; argmax, no products
in memory. `point_sums`: BC channels of BK clusters over a part of the pixels; a tile without a pixel of the BK clusters
is skipped. `center`: parts of one cluster, added in order. `spread`: rows of a table to pixels.
`pack`, `mark`, `number`: keys of segments before and after a sort.
"""

import triton
import triton.language as tl

from ..core.triton_kernels import divide, root
from ..engines.pixel_rows.triton_kernels import (
    VARYING,
    load_labels,
    load_rows,
    load_tile,
    locate,
    pixel_offsets,
    pointers,
)

VARYING = [*VARYING, "block_height", "block_width", "B", "capacity", "num_classes"]


@triton.jit
def cells(at, cells, pixels, CORNERS: tl.constexpr, ACC: tl.constexpr):
    """(cell before, cell after, share of the second) of pixels `at` of a line, as F.interpolate."""
    if CORNERS:
        s = at.to(ACC) * divide(tl.cast(cells - 1, ACC), tl.cast(tl.maximum(pixels - 1, 1), ACC))
    else:
        s = tl.maximum((at.to(ACC) + 0.5) * divide(tl.cast(cells, ACC), tl.cast(pixels, ACC)) - 0.5, 0.0)
    first = tl.minimum(s.to(tl.int32), cells - 1)
    return first, tl.minimum(first + 1, cells - 1), s - first.to(ACC)


@triton.jit
def load_points(points, b, c, n, C, N, ACC: tl.constexpr):
    """x [c, n], 0 beyond C and N; interpolated if the map has another resolution."""
    if points.resized:
        mask = (c < C)[:, None] & (n < N)[None, :]
        n = tl.minimum(n, N - 1)
        y, y_next, fy = cells(n // points.W, points.h, points.H, points.corners, ACC)
        x, x_next, fx = cells(n % points.W, points.w, points.W, points.corners, ACC)
        p_row = points.map.data + tl.cast(b, tl.int64) * points.map.b + c.to(tl.int64)[:, None] * points.map.c
        p_top = p_row + (y.to(tl.int64) * points.y)[None, :]
        p_low = p_row + (y_next.to(tl.int64) * points.y)[None, :]
        left, right = (x.to(tl.int64) * points.x)[None, :], (x_next.to(tl.int64) * points.x)[None, :]
        wy, wx = 1.0 - fy, 1.0 - fx
        top = (wy * wx)[None, :] * tl.load(p_top + left, mask=mask, other=0.0).to(ACC)
        top += (wy * fx)[None, :] * tl.load(p_top + right, mask=mask, other=0.0).to(ACC)
        low = (fy * wx)[None, :] * tl.load(p_low + left, mask=mask, other=0.0).to(ACC)
        low += (fy * fx)[None, :] * tl.load(p_low + right, mask=mask, other=0.0).to(ACC)
        return top + low
    else:
        return load_tile(points.map, b, c, n, C, N).to(ACC)


@triton.jit
def load_location(location, b, n, N, ACC: tl.constexpr):
    """(y [n], x [n]); zeros without a location."""
    if location.kind == "grid":
        y = divide((n // location.W).to(ACC), tl.cast(tl.maximum(location.H - 1, 1), ACC))
        x = divide((n % location.W).to(ACC), tl.cast(tl.maximum(location.W - 1, 1), ACC))
    elif location.kind == "given":
        p_y = location.map.data + tl.cast(b, tl.int64) * location.map.b + pixel_offsets(location.map, n)
        y = tl.load(p_y, mask=n < N, other=0.0).to(ACC)
        x = tl.load(p_y + location.map.c, mask=n < N, other=0.0).to(ACC)
    else:
        y = tl.zeros(n.shape, ACC)
        x = y
    return y, x


@triton.jit(do_not_specialize=VARYING)
def start(points, location, valid, init, inverse, weight, ids, C, W, N, K, block_height, block_width, columns, tiles,
          tile):  # fmt: skip
    """inverse [B, N] = 1 / L, 0 for v = 0, -1 for pixels that take no part; weight [B, N], so that q = weight
    [x / L; y; x]; and the first ids [B, N]."""
    _, b, n = locate(1, tiles, tile.BN)
    c = tl.arange(0, tile.BC)
    squares = tl.zeros((tile.BC, tile.BN), tile.ACC)
    for c0 in range(0, C, tile.BC):
        values = load_points(points, b, c0 + c, n, C, N, tile.ACC)
        squares += values * values
    square = tl.sum(squares, 0)
    # L = max(|x|, 1e-12)
    r = tl.where(square == 0.0, 0.0, divide(tl.full((tile.BN,), 1.0, tile.ACC), tl.maximum(root(square), 1e-12)))
    w = tl.full((tile.BN,), 1.0, tile.ACC)
    if location.kind != "none":
        y, x = load_location(location, b, n, N, tile.ACC)
        at = y * y + x * x
        # |[v; y; x]|^2
        total = square * r * r + at
        w = tl.where(total == 0.0, 0.0, divide(w, tl.maximum(root(total), 1e-12)))
        square += at
    known = (tl.abs(square) < float("inf")) & (n < N)
    if valid.data is not None:
        p_valid = valid.data + tl.cast(b, tl.int64) * valid.b + pixel_offsets(valid, n)
        known = known & (tl.load(p_valid, mask=n < N, other=0) != 0)
    if init.data is None:
        first = n // W // block_height * columns + n % W // block_width
    else:
        first = load_labels(init, b, n, K, N, -1)
    p = b.to(tl.int64) * N + n
    tl.store(inverse + p, tl.where(known, r, -1.0), mask=n < N)
    tl.store(weight + p, tl.where(known, w, 0.0), mask=n < N)
    tl.store(ids + p, tl.where(known, first, -1).to(tl.int64), mask=n < N)


@triton.jit(do_not_specialize=VARYING)
def assign(points, location, rows, mass, inverse, ids, N, tiles, tile):
    """ids [B, N]: argmax_k <[x / L; y; x], m_k> over the clusters with a pixel; rows hold m [B, K, J]."""
    _, b, n = locate(1, tiles, tile.BN)
    C, K = rows.C, rows.K
    c = tl.arange(0, tile.BC)
    p = b.to(tl.int64) * N + n
    r = tl.load(inverse + p, mask=n < N, other=-1.0)
    best = tl.full((tile.BN,), float("-inf"), tile.ACC)
    found = tl.full((tile.BN,), -1, tl.int32)
    for k0 in range(0, K, tile.BK):
        k = k0 + tl.arange(0, tile.BK)
        s = tl.zeros((tile.BN, tile.BK), tile.ACC)
        for c0 in range(0, C, tile.BC):
            columns = tl.trans(load_points(points, b, c0 + c, n, C, N, tile.ACC))
            # [BN, BC] @ [BC, BK]
            s = tl.dot(columns, load_rows(rows, b, c0 + c, k), s, input_precision="ieee", out_dtype=tile.ACC)
        s *= r[:, None]
        p_rows = rows.data + b.to(tl.int64) * rows.b + k.to(tl.int64) * rows.k + C
        if location.kind != "none":
            y, x = load_location(location, b, n, N, tile.ACC)
            s += y[:, None] * tl.load(p_rows, mask=k < K, other=0.0)[None, :]
            s += x[:, None] * tl.load(p_rows + 1, mask=k < K, other=0.0)[None, :]
        live = tl.load(mass + b.to(tl.int64) * K + k, mask=k < K, other=0.0) > 0.0
        s = tl.where(live[None, :], s, float("-inf"))
        top = tl.max(s, 1)
        first = tl.min(tl.where(s == top[:, None], k[None, :], 2147483647), 1)
        # a later block wins only if it is larger
        found = tl.where(top > best, first, found)
        best = tl.maximum(best, top)
    tl.store(ids + p, tl.where(r >= 0.0, found, -1).to(tl.int64), mask=n < N)


@triton.jit
def add_columns(values, label, k, sums, tile):
    """sums [BC, BK] plus the columns of values [BC, BN] at their labels, one by one, without a product."""
    at = tl.arange(0, tile.BN)
    for i in range(0, tile.BN):
        column = tl.sum(tl.where((at == i)[None, :], values, 0.0), 1)
        chosen = tl.max(tl.where(at == i, label, -1), 0)
        sums += tl.where((k == chosen)[None, :], column[:, None], 0.0)
    return sums


@triton.jit(do_not_specialize=VARYING)
def point_sums(points, location, inverse, weight, labels, out, moments, C, K, N, tiles, group_tiles, parts, chunks,
               blocks, tile, STAGES: tl.constexpr):  # fmt: skip
    """out [groups, parts, K, C] = sum_n w_n x_n by label, of BC channels and BK labels over a part of a group's tiles,
    with w = weight inverse or 1; moments [groups, parts, 1 or 3, K] = pixels, sums of weight y and weight x."""
    program = tl.program_id(0)
    chunk, block, part = program % chunks, program // chunks % blocks, program // chunks // blocks
    group = part // parts
    c, k = chunk * tile.BC + tl.arange(0, tile.BC), block * tile.BK + tl.arange(0, tile.BK)
    sums = tl.zeros((tile.BC, tile.BK), tile.ACC)
    count = tl.zeros((tile.BK,), tile.ACC)
    sum_y = count
    sum_x = count
    begin = group * group_tiles + (tl.cast(group_tiles, tl.int64) * (part % parts) // parts).to(tl.int32)
    end = group * group_tiles + (tl.cast(group_tiles, tl.int64) * (part % parts + 1) // parts).to(tl.int32)
    for t in tl.range(begin, end, num_stages=STAGES):
        b = t // tiles
        n = t % tiles * tile.BN + tl.arange(0, tile.BN)
        label = load_labels(labels, b, n, K, N, -1)
        here = label // tile.BK == block
        here = here & (label >= 0)
        if tl.max(here.to(tl.int32), 0) > 0:
            member = (k[:, None] == label[None, :]).to(tile.ACC)  # [BK, BN]
            count += tl.sum(member, 1)
            # pixels of no label may be NaN
            values = tl.where(here[None, :], load_points(points, b, c, n, C, N, tile.ACC), 0.0)
            if weight is not None:
                p = tl.cast(b, tl.int64) * N + n
                w = tl.load(weight + p, mask=here, other=0.0)
                values *= (w * tl.load(inverse + p, mask=here, other=0.0))[None, :]
                if location.kind != "none":
                    y, x = load_location(location, b, n, N, tile.ACC)
                    sum_y += tl.sum(tl.where(here, w * y, 0.0)[None, :] * member, 1)
                    sum_x += tl.sum(tl.where(here, w * x, 0.0)[None, :] * member, 1)
            else:
                # 0 times NaN is NaN: what is not finite is added to its own label only
                wild = (tl.abs(values) < float("inf")) == 0
                if tl.max(tl.max(wild.to(tl.int32), 1), 0) > 0:
                    sums = add_columns(tl.where(wild, values, 0.0), label, k, sums, tile)
                values = tl.where(wild, 0.0, values)
            # [BC, BN] @ [BN, BK]
            sums = tl.dot(values, tl.trans(member), sums, input_precision="ieee", out_dtype=tile.ACC)
    p_out = out + part.to(tl.int64) * K * C + k.to(tl.int64)[None, :] * C + c[:, None]
    tl.store(p_out, sums, mask=(c < C)[:, None] & (k < K)[None, :])
    mask = k < tl.where(chunk == 0, K, 0)
    if weight is None:
        tl.store(moments + part.to(tl.int64) * K + k, count, mask=mask)
    else:
        p_moments = moments + part.to(tl.int64) * 3 * K + k
        tl.store(p_moments, count, mask=mask)
        tl.store(p_moments + K, sum_y, mask=mask)
        tl.store(p_moments + tl.cast(K, tl.int64) * 2, sum_x, mask=mask)


@triton.jit
def add_parts(p, step, c, C, parts, tile):
    """sum over parts of [c], in order."""
    total = tl.zeros((tile.BC,), tile.ACC)
    for first in range(0, parts, tile.BN):
        part = first + tl.arange(0, tile.BN)
        mask = (part < parts)[:, None] & (c < C)[None, :]
        total += tl.sum(tl.load(p + part.to(tl.int64)[:, None] * step + c[None, :], mask=mask, other=0.0), 0)
    return total


@triton.jit(do_not_specialize=VARYING)
def center(out, moments, rows, mass, C, K, parts, tile, LOCATED: tl.constexpr):
    """m_k [J] = unit(sum q) and the pixels of one cluster, from the sums of its parts."""
    b, k = (tl.program_id(0) // K).to(tl.int64), tl.program_id(0) % K
    p_out = out + (b * parts * K + k) * C
    step = tl.cast(K, tl.int64) * C
    p_moments = moments + b * parts * 3 * K + k
    c = tl.arange(0, tile.BC)
    few = tl.arange(0, tile.BC)
    # count, sum of y, sum of x
    three = tl.zeros((tile.BC,), tile.ACC)
    for first in range(0, parts, tile.BN):
        part = first + tl.arange(0, tile.BN)
        p = p_moments + part.to(tl.int64)[:, None] * 3 * K + few.to(tl.int64)[None, :] * K
        three += tl.sum(tl.load(p, mask=(part < parts)[:, None] & (few < 3)[None, :], other=0.0), 0)
    tl.store(mass + b * K + k + few, three, mask=few < 1)
    square = tl.zeros((tile.BC,), tile.ACC)
    if LOCATED:
        square += tl.where(few > 0, three * three, 0.0)
    for c0 in range(0, C, tile.BC):
        total = add_parts(p_out, step, c0 + c, C, parts, tile)
        square += total * total
    norm = root(tl.sum(square, 0))
    live = norm > 0.0
    norm = tl.maximum(norm, 1e-12)
    p_rows = rows + (b * K + k) * (C + 2)
    for c0 in range(0, C, tile.BC):
        total = add_parts(p_out, step, c0 + c, C, parts, tile)
        tl.store(p_rows + c0 + c, tl.where(live, divide(total, norm + tl.zeros_like(total)), 0.0), mask=c0 + c < C)
    if LOCATED:
        at = tl.where(live, divide(three, norm + tl.zeros_like(three)), 0.0)
        tl.store(p_rows + C + few - 1, at, mask=(few > 0) & (few < 3))


@triton.jit(do_not_specialize=VARYING)
def spread(table, step, stride, labels, grad, C, K, N, tiles, chunks, tile):
    """grad [B, C, N] = the row of each pixel's label of the table [K, C]; zeros without a label."""
    chunk, b, n = locate(chunks, tiles, tile.BN)
    c = chunk * tile.BC + tl.arange(0, tile.BC)
    label = load_labels(labels, b, n, K, N, -1)
    p_table = table + label.to(tl.int64)[None, :] * step + c.to(tl.int64)[:, None] * stride
    values = tl.load(p_table, mask=(label >= 0)[None, :] & (c < C)[:, None], other=0.0)
    tl.store(pointers(grad, b, c, n), values.to(grad.data.dtype.element_ty), mask=(c < C)[:, None] & (n < N)[None, :])


@triton.jit(do_not_specialize=VARYING)
def pack(ids, labels, ignore_index, num_classes, keys, N, tiles, BN: tl.constexpr):
    """keys [B, N] = (image, cluster, label) in 16, 31 and 16 bits; the largest number for a pixel of no segment."""
    _, b, n = locate(1, tiles, BN)
    p_ids = ids.data + tl.cast(b, tl.int64) * ids.b + pixel_offsets(ids, n)
    k = tl.load(p_ids, mask=n < N, other=0).to(tl.int64)
    label = load_labels(labels, b, n, num_classes, N, ignore_index)
    key = (b.to(tl.int64) << 47) | (k << 16) | label.to(tl.int64)
    key = tl.where((k >= 0) & (label >= 0), key, 0x7FFFFFFFFFFFFFFF)
    tl.store(keys + b.to(tl.int64) * N + n, key, mask=n < N)


@triton.jit(do_not_specialize=VARYING)
def mark(keys, first, N, BN: tl.constexpr):
    """first [N]: whether a sorted key is that of a segment and differs from the one before it."""
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    key = tl.load(keys + n, mask=n < N, other=0)
    before = tl.load(keys + n - 1, mask=(n > 0) & (n < N), other=-1)
    tl.store(first + n, ((key != before) & (key != 0x7FFFFFFFFFFFFFFF)).to(tl.int32), mask=n < N)


@triton.jit(do_not_specialize=VARYING)
def number(keys, order, first, numbers, dense, found, N, capacity, BN: tl.constexpr):
    """dense [N], at the places in `order`, and the labels of the segments from their first pixels. numbers [N] count
    from 1."""
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    key = tl.load(keys + n, mask=n < N, other=0)
    at = tl.load(numbers + n, mask=n < N, other=1) - 1
    kept = (key != 0x7FFFFFFFFFFFFFFF) & (at < capacity)
    tl.store(dense + tl.load(order + n, mask=n < N, other=0), tl.where(kept, at, -1), mask=n < N)
    begins = tl.load(first + n, mask=n < N, other=0) != 0
    tl.store(found + at, key & 65535, mask=begins & kept & (n < N))
