"""Kernels of the refine family. Derivation and limits: docs/kernels/refine.md.

A pixel is a sum of at most 3 x 3 cells, whose weights serve all channels. A program owns BN pixels (or cells) and walks
over channels, BC at a time. `upsample`: the output. Backward: `trace` writes each pixel's weights and first cell, by
which the host sorts the pixels, and the gradients of displacements; `weigh`: those of offsets and neighbor logits, by
gather; `count_before`: where the pixels of a first cell begin; `spread`: the gradient of a cell from the pixels of the
nine first cells that reach it, in their order, without atomics.
"""

import triton
import triton.language as tl

from ..core.triton_kernels import divide, exp
from ..engines.pixel_rows.triton_kernels import load_tile, locate, pixel_offsets, pointers

VARYING = ["C", "h", "w", "H", "W", "tiles", "cells", "steps"]


@triton.jit
def load_one(map, b, c, n, mask):
    """Channel c of pixels n [n], 0 where masked."""
    p_image = map.data + tl.cast(b, tl.int64) * map.b + tl.cast(c, tl.int64) * map.c
    return tl.load(p_image + pixel_offsets(map, n), mask=mask, other=0.0)


@triton.jit
def neighbor(n, k, H, W):
    """The k-th of the 3 x 3 neighbors of pixels n; beyond the border, the border's."""
    y = tl.minimum(tl.maximum(n // W + k // 3 - 1, 0), H - 1)
    x = tl.minimum(tl.maximum(n % W + k % 3 - 1, 0), W - 1)
    return y * W + x


@triton.jit
def normalizer(maps, b, n, mask, ACC: tl.constexpr):
    """(largest logit, sum of exponentials) of the neighbors of pixels n."""
    top = tl.full(n.shape, float("-inf"), ACC)
    for k in tl.static_range(9):
        top = tl.maximum(top, load_one(maps.logits, b, k, n, mask).to(ACC))
    total = tl.zeros(n.shape, ACC)
    for k in tl.static_range(9):
        total += exp(load_one(maps.logits, b, k, n, mask).to(ACC) - top)
    return top, total


@triton.jit
def displace(maps, b, n, mask, H, W, ACC: tl.constexpr):
    """(o~_y, o~_x) of pixels n."""
    if maps.neighbors:
        top, total = normalizer(maps, b, n, mask, ACC)
        y = tl.zeros(n.shape, ACC)
        x = tl.zeros(n.shape, ACC)
        for k in tl.static_range(9):
            e = exp(load_one(maps.logits, b, k, n, mask).to(ACC) - top)
            at = neighbor(n, k, H, W)
            y += e * load_one(maps.offsets, b, 0, at, mask).to(ACC)
            x += e * load_one(maps.offsets, b, 1, at, mask).to(ACC)
        return divide(y, total), divide(x, total)
    else:
        return load_one(maps.offsets, b, 0, n, mask).to(ACC), load_one(maps.offsets, b, 1, n, mask).to(ACC)


@triton.jit
def cell_of(d, cells, labels, CORNERS: tl.constexpr, ACC: tl.constexpr):
    """(cell, fraction) of labels d, exact."""
    if CORNERS:
        at = d * (cells - 1)
        den = tl.maximum(labels - 1, 1)
    else:
        at = tl.maximum(d * (2 * cells) + (cells - labels), 0)
        den = 2 * labels
    den = tl.zeros_like(at) + den
    return at // den, divide((at % den).to(ACC), den.to(ACC))


@triton.jit
def combine(f, g, same, t, u):
    """Shares of three cells, of f at the first label and g at the second."""
    first = f * (1.0 - t) + tl.where(same, g * (1.0 - u), 0.0)
    second = f * t + g * tl.where(same, u, 1.0 - u)
    return first, second, tl.where(same, 0.0, g * u)


@triton.jit
def span(q, cells, labels, maps, ACC: tl.constexpr):
    """(first cell, weights, slopes) of positions q, each weight and slope for three cells; a NaN counts as 0."""
    slope = tl.full(q.shape, 1.0, ACC)
    end = tl.cast(labels - 1, ACC)
    q = tl.where(q == q, q, 0.0)
    if maps.zeros:
        outside = (q < -1.0) | (q >= end + 1.0)
        q = tl.where(outside, 0.0, q)
    else:
        slope = tl.where((q > 0.0) & (q < end), 1.0, 0.0).to(ACC)
        q = tl.minimum(tl.maximum(q, 0.0), end)
        outside = q < -1.0  # nowhere
    floor = tl.floor(q)
    part = q - floor
    p = floor.to(maps.integer)
    low = (p >= 0) & (outside == 0)
    high = (p + 1 < labels) & (outside == 0)
    first, t = cell_of(tl.maximum(p, 0), cells, labels, maps.corners, ACC)
    second, u = cell_of(tl.minimum(p + 1, labels - 1), cells, labels, maps.corners, ACC)
    same = first == second
    weights = combine(tl.where(low, 1.0 - part, 0.0), tl.where(high, part, 0.0), same, t, u)
    slopes = combine(tl.where(low, -slope, 0.0), tl.where(high, slope, 0.0), same, t, u)
    return first.to(tl.int32), weights, slopes


@triton.jit
def at_index(three, i):
    """The i-th of three, i known at run time: the loops over rows of cells stay loops, for the sake of registers."""
    return tl.where(i == 0, three[0], tl.where(i == 1, three[1], three[2]))


@triton.jit
def positions(maps, b, n, mask, H, W, ACC: tl.constexpr):
    """(y, x, whether finite) of pixels n after their displacement."""
    y, x = displace(maps, b, n, mask, H, W, ACC)
    y += (n // W).to(ACC)
    x += (n % W).to(ACC)
    return y, x, (tl.abs(y) < float("inf")) & (tl.abs(x) < float("inf"))


@triton.jit(do_not_specialize=VARYING)
def upsample(features, maps, out, C, h, w, H, W, N, tiles, BN: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr):
    """out [B, C, N]."""
    _, b, n = locate(1, tiles, BN)
    mask = n < N
    y, x, _ = positions(maps, b, n, mask, H, W, ACC)
    row, wy, _ = span(y, h, H, maps, ACC)
    column, wx, _ = span(x, w, W, maps, ACC)
    known = (y == y) & (x == x)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        total = tl.zeros((BC, BN), ACC)
        for r in range(3):
            weight_of_row = at_index(wy, r)
            first = tl.minimum(row + r, h - 1) * w
            for k in tl.static_range(3):
                weight = weight_of_row * wx[k]
                inside = (c < C)[:, None] & (mask & (weight != 0.0))[None, :]
                p_cells = pointers(features, b, c, first + tl.minimum(column + k, w - 1))
                total += weight[None, :] * tl.load(p_cells, mask=inside, other=0.0).to(ACC)
        total = tl.where(known[None, :], total, float("nan"))
        tl.store(pointers(out, b, c, n), total.to(out.data.dtype.element_ty), mask=(c < C)[:, None] & mask[None, :])


@triton.jit
def slope(features, grad, b, n, row, column, wy, wx, sy, sx, C, h, w, N, BN: tl.constexpr, BC: tl.constexpr,
          ACC: tl.constexpr):  # fmt: skip
    """(by y, by x) of pixels n: sums over channels of the gradient times the derivative of the output by position."""
    mask = n < N
    by_y = tl.zeros((BN,), ACC)
    by_x = tl.zeros((BN,), ACC)
    for c0 in range(0, C, BC):
        c = c0 + tl.arange(0, BC)
        total_y = tl.zeros((BC, BN), ACC)
        total_x = tl.zeros((BC, BN), ACC)
        for r in range(3):
            slope_of_row, weight_of_row = at_index(sy, r), at_index(wy, r)
            first = tl.minimum(row + r, h - 1) * w
            for k in tl.static_range(3):
                weight_y, weight_x = slope_of_row * wx[k], weight_of_row * sx[k]
                inside = (c < C)[:, None] & (mask & ((weight_y != 0.0) | (weight_x != 0.0)))[None, :]
                p_cells = pointers(features, b, c, first + tl.minimum(column + k, w - 1))
                value = tl.load(p_cells, mask=inside, other=0.0).to(ACC)
                total_y += weight_y[None, :] * value
                total_x += weight_x[None, :] * value
        g = load_tile(grad, b, c, n, C, N).to(ACC)
        by_y += tl.sum(g * total_y, 0)
        by_x += tl.sum(g * total_x, 0)
    return by_y, by_x


@triton.jit(do_not_specialize=VARYING)
def trace(features, maps, grad, weights, keys, slopes, C, h, w, H, W, N, tiles, BN: tl.constexpr, BC: tl.constexpr,
          ACC: tl.constexpr):  # fmt: skip
    """weights [B, 6, N] of rows and columns and keys [B, N], the first cell, or h w for a NaN; slopes [B, 2, N], the
    gradient of the displacement. Either may be absent."""
    _, b, n = locate(1, tiles, BN)
    mask = n < N
    y, x, finite = positions(maps, b, n, mask, H, W, ACC)
    row, wy, sy = span(y, h, H, maps, ACC)
    column, wx, sx = span(x, w, W, maps, ACC)
    if weights is not None:
        p_weights = weights + b.to(tl.int64) * 6 * N + n
        for k in tl.static_range(3):
            tl.store(p_weights + tl.cast(N, tl.int64) * k, wy[k], mask=mask)
            tl.store(p_weights + tl.cast(N, tl.int64) * (3 + k), wx[k], mask=mask)
        tl.store(keys + b.to(tl.int64) * N + n, tl.where((y == y) & (x == x), row * w + column, h * w), mask=mask)
    if slopes is not None:
        by_y, by_x = slope(features, grad, b, n, row, column, wy, wx, sy, sx, C, h, w, N, BN, BC, ACC)
        p_slopes = slopes + b.to(tl.int64) * 2 * N + n
        tl.store(p_slopes, tl.where(finite, by_y, 0.0), mask=mask)
        tl.store(p_slopes + N, tl.where(finite, by_x, 0.0), mask=mask)


@triton.jit
def load_slopes(slopes, b, n, mask, N):
    p_slopes = slopes + b.to(tl.int64) * 2 * N + n
    return tl.load(p_slopes, mask=mask, other=0.0), tl.load(p_slopes + N, mask=mask, other=0.0)


@triton.jit
def weigh_logits(maps, slopes, grad_logits, b, n, H, W, N, ACC: tl.constexpr):
    """grad_logits [B, 9, N] = a_k (<d, o_k> - <d, o~>)."""
    mask = n < N
    top, total = normalizer(maps, b, n, mask, ACC)
    moved_y, moved_x = displace(maps, b, n, mask, H, W, ACC)
    dy, dx = load_slopes(slopes, b, n, mask, N)
    moves = (dy != 0.0) | (dx != 0.0)
    along = dy * moved_y + dx * moved_x
    for k in tl.static_range(9):
        a = divide(exp(load_one(maps.logits, b, k, n, mask).to(ACC) - top), total)
        at = neighbor(n, k, H, W)
        y, x = load_one(maps.offsets, b, 0, at, mask).to(ACC), load_one(maps.offsets, b, 1, at, mask).to(ACC)
        value = tl.where(moves, a * (dy * y + dx * x - along), 0.0)
        p_grad = grad_logits.data + b.to(tl.int64) * grad_logits.b + k * grad_logits.c + pixel_offsets(grad_logits, n)
        tl.store(p_grad, value.to(grad_logits.data.dtype.element_ty), mask=mask)


@triton.jit
def weigh_offsets(maps, slopes, grad_offsets, b, n, H, W, N, BN: tl.constexpr, ACC: tl.constexpr):
    """grad_offsets [B, 2, N] = sum of a_k(p) d(p) over the pixels p whose k-th neighbor this is."""
    mask = n < N
    sum_y = tl.zeros((BN,), ACC)
    sum_x = tl.zeros((BN,), ACC)
    if maps.neighbors:
        y, x = n // W, n % W
        # the pixels around, and for each those of its neighbors that are this pixel
        for r in range(-1, 2):
            for c in range(-1, 2):
                here = mask & (y + r >= 0) & (y + r < H) & (x + c >= 0) & (x + c < W)
                p = tl.where(here, n + r * W + c, n)
                dy, dx = load_slopes(slopes, b, p, here, N)
                here = here & ((dy != 0.0) | (dx != 0.0))
                top, total = normalizer(maps, b, p, here, ACC)
                share = tl.zeros((BN,), ACC)
                for k in tl.static_range(9):
                    is_this = here & (neighbor(p, k, H, W) == n)
                    share += tl.where(is_this, exp(load_one(maps.logits, b, k, p, is_this).to(ACC) - top), 0.0)
                share = tl.where(here, divide(share, total), 0.0)
                sum_y += tl.where(here, share * dy, 0.0)
                sum_x += tl.where(here, share * dx, 0.0)
    else:
        sum_y, sum_x = load_slopes(slopes, b, n, mask, N)
    p_grad = grad_offsets.data + b.to(tl.int64) * grad_offsets.b + pixel_offsets(grad_offsets, n)
    tl.store(p_grad, sum_y.to(grad_offsets.data.dtype.element_ty), mask=mask)
    tl.store(p_grad + grad_offsets.c, sum_x.to(grad_offsets.data.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=VARYING)
def weigh(maps, slopes, grad_offsets, grad_logits, H, W, N, tiles, BN: tl.constexpr, ACC: tl.constexpr):
    """The gradients of offsets and neighbor logits; either may be absent."""
    _, b, n = locate(1, tiles, BN)
    if grad_offsets.data is not None:
        weigh_offsets(maps, slopes, grad_offsets, b, n, H, W, N, BN, ACC)
    if grad_logits.data is not None:
        weigh_logits(maps, slopes, grad_logits, b, n, H, W, N, ACC)


@triton.jit(do_not_specialize=VARYING)
def count_before(keys, starts, cells, N, tiles, steps, BN: tl.constexpr):
    """starts [B, cells + 1]: how many of the sorted keys [B, N] are smaller than each cell, by `steps` halvings."""
    _, b, cell = locate(1, tiles, BN)
    low = tl.zeros((BN,), tl.int64)
    high = low + N
    p_keys = keys + b.to(tl.int64) * N
    for _ in range(steps):
        middle = (low + high) // 2
        wide = low < high
        below = wide & (tl.load(p_keys + middle, mask=wide, other=0) < cell)
        high = tl.where(below, high, middle)
        low = tl.where(below, middle + 1, low)
    tl.store(starts + b.to(tl.int64) * (cells + 1) + cell, low, mask=cell <= cells)


@triton.jit
def reach(first, cell, cells, w0, w1, w2):
    """The weight of a cell in spans that begin at `first`; what lies beyond the last cell is on it."""
    last = cells - 1
    weight = tl.where(first == cell, w0, 0.0)
    weight += tl.where(tl.minimum(first + 1, last) == cell, w1, 0.0)
    return weight + tl.where(tl.minimum(first + 2, last) == cell, w2, 0.0)


@triton.jit(do_not_specialize=[*VARYING, "chunks"])
def spread(grad, weights, order, starts, out, C, h, w, N, tiles, chunks, BN: tl.constexpr, BC: tl.constexpr,
           ACC: tl.constexpr):  # fmt: skip
    """out [B, C, h w] = sum over pixels of their weight for a cell times their gradient; order [B, N] sorts them by
    first cell, starts [B, h w + 1]."""
    chunk, b, cell = locate(chunks, tiles, BN)
    cells = h * w
    c = chunk * BC + tl.arange(0, BC)
    y, x = cell // w, cell % w
    total = tl.zeros((BC, BN), ACC)
    p_weights, p_order = weights + b.to(tl.int64) * 6 * N, order + b.to(tl.int64) * N
    p_starts = starts + b.to(tl.int64) * (cells + 1)
    for k in range(9):
        first_y, first_x = y - k // 3, x - k % 3
        known = (cell < cells) & (first_y >= 0) & (first_x >= 0)
        first = tl.where(known, first_y * w + first_x, 0)
        begin = tl.load(p_starts + first, mask=known, other=0)
        count = tl.load(p_starts + first + 1, mask=known, other=0) - begin
        for i in range(tl.max(count, 0).to(tl.int32)):
            here = i < count
            n = tl.load(p_order + begin + i, mask=here, other=0)
            p = p_weights + n
            step = tl.cast(N, tl.int64)
            y0, x0 = tl.load(p, mask=here, other=0.0), tl.load(p + 3 * step, mask=here, other=0.0)
            y1, x1 = tl.load(p + step, mask=here, other=0.0), tl.load(p + 4 * step, mask=here, other=0.0)
            y2, x2 = tl.load(p + 2 * step, mask=here, other=0.0), tl.load(p + 5 * step, mask=here, other=0.0)
            weight = reach(first_y, y, h, y0, y1, y2) * reach(first_x, x, w, x0, x1, x2)
            inside = (c < C)[:, None] & (here & (weight != 0.0))[None, :]
            total += weight[None, :] * tl.load(pointers(grad, b, c, n), mask=inside, other=0.0).to(ACC)
    inside = (c < C)[:, None] & (cell < cells)[None, :]
    tl.store(pointers(out, b, c, cell), total.to(out.data.dtype.element_ty), mask=inside)
