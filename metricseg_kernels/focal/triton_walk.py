"""Triton kernels of the focal family: one tile walk, four epilogues.

Grid: (image x tile of cells, class chunk, part of a very wide cell). A program owns CH rows x (C - 1) columns of cells
and walks down its cell intervals: interval (y, x) holds the labels between the centers of cells (y, x) and
(y+1, x+1), numbered from -1, so that every label has one interval and, with a power-of-two ratio, every interval the
same number R of label columns. The P = C R lanes are label columns. A row of cells is loaded and interpolated
horizontally once, [K, P], for the R label rows above it and the R below; each of them costs a blend of two rows and two
multiply-adds of gradient per class. One thread holds all classes of a lane (up to 24; blocks of 16 + 2 + 1 make K = 19
without padding), so the softmax's reductions are register arithmetic. Registers hold two rows of logits, two of
gradient and one of exponentials; shared memory (2 KB) carries only the fold of a finished gradient row from label
columns to cells: R lanes summed, right shares moved one cell over.

Intervals at the edge of two tiles are walked by both: each uses their gradient, the owner counts their loss. So there
are no atomics, sums have a fixed order, and (1 + 1/CH)(1 + 1/C) of the exponentials are computed.

Bytes: labels, logits and gradient once, and the halo's share of the logits, mostly from L2: the least possible to
about a tenth. More classes than one pass holds (K > 64) go in two: "statistics" walks a tile chunk by chunk of classes
with an online softmax and leaves three numbers per label pixel, "given" recomputes the exponentials per chunk; these 12
bytes per label pixel are less than the bf16 logits themselves at K = 150 and ratio 4.

Nothing here has been timed on a device. Compiled for sm_90, K = 19 takes 480 instructions per warp and label row and
900 more per row of cells: 8x19x128x256 to 512x1024 is bound by instructions, 0.13 ms of them on a full H100, three to
four times what its bytes and exponentials alone would take.
"""

import triton
import triton.language as tl

from .triton_math import (
    exp,
    finite,
    sigmoid_element,
    softmax_gradient,
    softmax_pixel,
    take_classes,
    take_largest,
    weight_sum,
    weighted_gap,
)
from .triton_reduce import add_totals, no_totals, store_totals


@triton.jit
def first_label(axis, cell):
    """The first label whose interval is >= cell, exact: csrc/common/resize.h with intervals from -1."""
    n = tl.cast(cell, tl.int64) * axis.den - axis.add
    return tl.minimum(tl.where(n <= 0, 0, (n + axis.mul - 1) // axis.mul), axis.labels)


@triton.jit
def fraction(axis, label, cell, ACC: tl.constexpr):
    """Share of the lower or right neighbour: 1 before the first cell's center, 0 beyond the last's."""
    n = tl.cast(label, tl.int64) * axis.mul + axis.add - tl.cast(cell, tl.int64) * axis.den
    f = n.to(ACC) / tl.cast(axis.den, ACC)
    return tl.where(cell < 0, 1.0, tl.where(cell >= axis.cells - 1, 0.0, f)).to(ACC)


@triton.jit
def class_blocks(k0, KS: tl.constexpr):
    """Class indices of a chunk that begins at k0, one [k, 1] block for each size in KS."""
    ks = ()
    for i in tl.static_range(len(KS)):
        ks += ((k0 + tl.arange(0, KS[i]))[:, None],)
        k0 += KS[i]
    return ks


@triton.jit
def zero_blocks(ks, C: tl.constexpr, ACC: tl.constexpr):
    """Zeros, one [k, C] block for each of ks."""
    zeros = ()
    for i in tl.static_range(len(ks)):
        zeros += (tl.zeros_like(ks[i]).to(ACC) + tl.zeros((1, C), ACC),)
    return zeros


@triton.jit
def load_row(row, s_k, s_x, ks, classes, left, right, fx, BLEND: tl.constexpr, PADDING: tl.constexpr,
             ACC: tl.constexpr):  # fmt: skip
    """A row of cells interpolated to the tile's label columns, [k, P] blocks; PADDING where there is no class.

    The hint of contiguity makes every compiler lay threads along the lanes, whatever the strides; it holds no access
    together, since `row` has no known alignment.
    """
    out = ()
    for i in tl.static_range(len(ks)):
        known = ks[i] < classes
        p_class = row + tl.cast(ks[i], tl.int64) * tl.cast(s_k, tl.int64)
        z = tl.load(tl.max_contiguous(p_class + left * s_x, (1, 2)), mask=known, other=0.0).to(ACC)
        if BLEND:
            p_right = tl.max_contiguous(p_class + right * s_x, (1, 2))
            z_right = tl.load(p_right, mask=known, other=0.0).to(ACC)
            z = (1.0 - fx) * z + fx * z_right
        out += (tl.where(known, z, PADDING),)
    return out


@triton.jit
def blend(top, bottom, f):
    """(1 - f) top + f bottom, block by block."""
    out = ()
    for i in tl.static_range(len(top)):
        out += ((1.0 - f) * top[i] + f * bottom[i],)
    return out


@triton.jit
def multiply_add(c, x, y):
    """c x + y, block by block."""
    out = ()
    for i in tl.static_range(len(x)):
        out += (c * x[i] + y[i],)
    return out


@triton.jit
def fold_and_store(p_row, s_k, s_x, g, ks, classes, x, mine, fx, C: tl.constexpr, R: tl.constexpr, SHIFT: tl.constexpr,
                   ACC: tl.constexpr):  # fmt: skip
    """Sums a gradient row [k, C R] over the label columns of each interval onto its cells, and writes those [k, C].

    dl/dz[x] = sum over interval x of (1 - f) g  +  sum over interval x - 1 of f g
    """
    for i in tl.static_range(len(ks)):
        cells = g[i]
        if SHIFT:
            here = tl.sum(tl.reshape((1.0 - fx) * g[i], (ks[i].shape[0], C, R)), 2)
            right = tl.sum(tl.reshape(fx * g[i], (ks[i].shape[0], C, R)), 2)
            before = tl.maximum(tl.arange(0, C) - 1, 0)[None, :] + tl.zeros_like(ks[i])
            cells = here + tl.gather(right, before, 1)
        p_cells = p_row + tl.cast(ks[i], tl.int64) * tl.cast(s_k, tl.int64) + x * s_x
        tl.store(p_cells, cells.to(p_row.dtype.element_ty), mask=(ks[i] < classes) & mine)


@triton.jit
def load_pixels(view, image, Y, X, inside):
    """One value per label pixel of row Y, [P]."""
    p_row = view.data + image * view.strides[0] + tl.cast(Y, tl.int64) * view.strides[2]
    return tl.load(p_row + X * view.strides[3], mask=inside, other=0)


@triton.jit
def load_labels(target, image, Y, X, inside, classes, IGNORE: tl.constexpr):
    """(valid, out of range, label with -1 where not valid, label as it is)."""
    t = load_pixels(target, image, Y, X, inside)
    if t.dtype == tl.uint8:
        t = t.to(tl.int32)
    if IGNORE is not None:
        inside = inside & (t != IGNORE)
    known = (t >= 0) & (t < classes)
    return inside & known, inside & (known == 0), tl.where(inside & known, t, -1).to(tl.int32), t


@triton.jit
def finish_softmax(io, pixels, labels, statistics, best, w_all, totals, GAMMA: tl.constexpr, SMOOTHING: tl.constexpr):
    """From complete statistics to loss and totals, and the coefficients (scale, hit, b) of the gradient."""
    image, Y, X, n, inside, mine, _ = pixels
    valid, bad, label, raw = labels
    m, rest, z_t, gap = statistics
    w_t = tl.full(m.shape, 1.0, m.dtype)
    if io.weight is not None:
        w_t = tl.load(io.weight + label, mask=valid, other=0.0)
    nll, value, scale, hit, b = softmax_pixel(m, rest, z_t, gap, w_t, w_all, io.classes, GAMMA, SMOOTHING)
    if io.keep_above is not None:
        valid = valid & (nll > tl.load(io.keep_above))
    value = tl.where(bad, float("nan"), tl.where(valid, value, 0.0))
    if io.loss is not None:
        tl.store(io.loss + n, value, mask=mine)
    counted = valid & mine
    value = tl.where(mine, value, 0.0)
    totals = add_totals(totals, value, counted, w_t, counted & (best == label), bad & mine, raw)
    if io.grad_loss is not None:
        upstream = load_pixels(io.grad_loss, image, Y, X, inside).to(m.dtype)
        scale *= upstream
        b *= upstream
    return totals, (tl.where(valid, scale, 0.0), tl.where(valid, hit, 0.0), tl.where(valid, b, 0.0))


@triton.jit
def softmax_row(io, z, ks, pixels, w_all, totals, GAMMA: tl.constexpr, SMOOTHING: tl.constexpr, IGNORE: tl.constexpr):
    """Epilogue "softmax": all classes are here. -> (totals, v, c), dl/dz = c v."""
    image, Y, X, n, inside, mine, opaque = pixels
    labels = load_labels(io.target, image, Y, X, inside, io.classes, IGNORE)
    low = tl.full(X.shape, float("-inf"), z[0].dtype)
    zero = tl.zeros(X.shape, z[0].dtype)
    best = tl.zeros(X.shape, tl.int32)
    if io.argmax is not None:
        best = take_largest(z, 0, low, best)
        tl.store(io.argmax + n, best, mask=mine)
    m, rest, z_t, exps = take_classes(z, ks, 0, labels[2], opaque, low, zero, low)
    gap = zero
    if SMOOTHING > 0:
        gap = weighted_gap(z, ks, io.weight, io.classes, m)
    statistics = (m, rest, z_t, gap)
    totals, coefficients = finish_softmax(io, pixels, labels, statistics, best, w_all, totals, GAMMA, SMOOTHING)
    scale, hit, b = coefficients
    v, c = softmax_gradient(exps, ks, labels[2] - opaque, io.weight, io.classes, scale, hit, b, SMOOTHING)
    return totals, v, c


@triton.jit
def statistics_row(io, z, ks, k0, pixels, w_all, totals, GAMMA: tl.constexpr, SMOOTHING: tl.constexpr,
                   IGNORE: tl.constexpr, BK: tl.constexpr, KALL: tl.constexpr):  # fmt: skip
    """Epilogue "statistics": one chunk of classes. The state [label pixels] passes (m, rest, z_t, gap) from chunk to
    chunk; after the last it holds what "given" needs, (m, scale, hit, b)."""
    image, Y, X, n, inside, mine, opaque = pixels
    labels = load_labels(io.target, image, Y, X, inside, io.classes, IGNORE)
    seen = tl.where(mine, k0, 0) > 0
    before = tl.load(io.state[0] + n, mask=seen, other=float("-inf"))
    best = tl.zeros(X.shape, tl.int32)
    if io.argmax is not None:
        best = take_largest(z, k0, before, tl.load(io.argmax + n, mask=seen, other=0))
        tl.store(io.argmax + n, best, mask=mine)
    rest = tl.load(io.state[1] + n, mask=seen, other=0.0)
    z_t = tl.load(io.state[2] + n, mask=seen, other=float("-inf"))
    m, rest, z_t, _ = take_classes(z, ks, k0, labels[2], opaque, before, rest, z_t)
    gap = tl.zeros(X.shape, m.dtype)
    if SMOOTHING > 0:
        gap = tl.load(io.state[3] + n, mask=seen, other=0.0)
        gap += tl.where(seen, (m - before) * weight_sum(io.weight, k0, KALL, m.dtype), 0.0)
        gap += weighted_gap(z, ks, io.weight, io.classes, m)
    left = (m, rest, z_t, gap)
    if k0 + BK >= io.classes:
        totals, coefficients = finish_softmax(io, pixels, labels, left, best, w_all, totals, GAMMA, SMOOTHING)
        left = (m, coefficients[0], coefficients[1], coefficients[2])
    for i in tl.static_range(4 if SMOOTHING > 0 else 3):
        tl.store(io.state[i] + n, left[i], mask=mine)
    return totals


@triton.jit
def given_row(io, z, ks, pixels, SMOOTHING: tl.constexpr, IGNORE: tl.constexpr):
    """Epilogue "given": the gradient of a chunk of classes, from the state. -> (v, c), dl/dz = c v."""
    image, Y, X, n, inside, _, _ = pixels
    labels = load_labels(io.target, image, Y, X, inside, io.classes, IGNORE)
    m = finite(tl.load(io.state[0] + n, mask=inside, other=float("inf")))
    scale = tl.load(io.state[1] + n, mask=inside, other=0.0)
    hit = tl.load(io.state[2] + n, mask=inside, other=0.0)
    b = hit
    if SMOOTHING > 0:
        b = tl.load(io.state[3] + n, mask=inside, other=0.0)
    exps = ()
    for i in tl.static_range(len(ks)):
        exps += (exp(z[i] - m[None, :]),)
    return softmax_gradient(exps, ks, labels[2], io.weight, io.classes, scale, hit, b, SMOOTHING)


@triton.jit
def sigmoid_row(io, z, ks, k0, pixels, totals, DENSE: tl.constexpr, GAMMA: tl.constexpr, ALPHA: tl.constexpr,
                IGNORE: tl.constexpr):  # fmt: skip
    """Epilogue "sigmoid": every class by itself. -> (totals, v, c), dl/dz = c v."""
    image, Y, X, n, inside, mine, _ = pixels
    valid, bad, label, raw = inside, inside != inside, tl.zeros(X.shape, tl.int32), tl.zeros(X.shape, tl.int32)
    if not DENSE:
        valid, bad, label, raw = load_labels(io.target, image, Y, X, inside, io.classes, IGNORE)
    zero = tl.zeros(X.shape, z[0].dtype)
    value = zero
    area = tl.cast(io.rows.labels, tl.int64) * io.cols.labels
    v = ()
    for i in tl.static_range(len(ks)):
        k = tl.cast(ks[i], tl.int64)
        known = ks[i] < io.classes
        t = (ks[i] == label[None, :]).to(z[0].dtype)
        if DENSE:
            p_row = io.target.data + image * io.target.strides[0] + tl.cast(Y, tl.int64) * io.target.strides[2]
            p_class = p_row + k * io.target.strides[1] + X[None, :] * io.target.strides[3]
            t = tl.load(p_class, mask=known & inside[None, :], other=0.0).to(z[0].dtype)
        loss, grad = sigmoid_element(z[i], t, GAMMA, ALPHA)
        loss = tl.where(bad[None, :], float("nan"), tl.where(valid[None, :], loss, 0.0))
        if io.loss is not None:
            # n counts pixels of [B, H, W]; element (image, k, Y, X) of [B, K, H, W] lies (image (K-1) + k) H W further
            p_loss = io.loss + (n[None, :] + (image * (io.classes - 1) + k) * area)
            tl.store(p_loss, loss, mask=known & mine[None, :])
        value += tl.sum(tl.where(known & mine[None, :], loss, 0.0), 0)
        if io.grad_loss is not None:
            p_row = io.grad_loss.data + image * io.grad_loss.strides[0]
            p_class = p_row + k * io.grad_loss.strides[1] + tl.cast(Y, tl.int64) * io.grad_loss.strides[2]
            p_element = p_class + X[None, :] * io.grad_loss.strides[3]
            grad *= tl.load(p_element, mask=known & inside[None, :], other=0.0).to(grad.dtype)
        v += (tl.where(known & valid[None, :], grad, 0.0),)
    counted = tl.where(mine, k0, 1) == 0
    totals = add_totals(totals, value, valid & counted, zero, valid != valid, bad & counted, raw)
    return totals, v, zero + 1.0


@triton.jit
def tile(io, k0, geometry, w_all, totals, PHASE: tl.constexpr, DENSE: tl.constexpr, GAMMA: tl.constexpr,
         SMOOTHING: tl.constexpr, ALPHA: tl.constexpr, IGNORE: tl.constexpr, KS: tl.constexpr, BK: tl.constexpr,
         KALL: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BLEND_Y: tl.constexpr, BLEND_X: tl.constexpr,
         ACC: tl.constexpr):  # fmt: skip
    """Walks one chunk of classes down the intervals [y_begin, y_end) of a tile, whose cells begin at row y_cells."""
    image, y_begin, y_cells, y_end, left, right, fx, X, inside, y_counts, x_cell, my_cells = geometry
    # The logit of no class: -inf, but finite where it meets a factor of 0
    PADDING: tl.constexpr = -1e38 if BLEND_Y or BLEND_X else float("-inf")
    strides = io.input.strides
    p_image = io.input.data + image * strides[0]
    ks = class_blocks(k0, KS)
    lo = first_label(io.rows, y_begin)
    # A label index is never negative, but the compiler can't know. With this 0 in a stride it does not keep an address
    # per class in registers across the loop; with it in a row's address, it can't take that for aligned.
    opaque = (lo < 0).to(tl.int32)
    # Interval -1 weighs its upper row by 0. That is row 1, as in F.interpolate, which also meets 0 * inf there.
    y_top = tl.minimum(tl.where(y_begin < 0, 1, y_begin), io.rows.cells - 1)
    p_row = p_image + (y_top * strides[2] + opaque)
    top = load_row(p_row, strides[1], strides[3], ks, io.classes, left, right, fx, BLEND_X, PADDING, ACC)
    g_top = zero_blocks(ks, C * R, ACC)
    for y in range(y_begin, y_end):
        bottom = top
        hi = first_label(io.rows, y + 1)
        opaque = (hi < 0).to(tl.int32)
        if BLEND_Y:
            p_row = p_image + (tl.minimum(y + 1, io.rows.cells - 1) * strides[2] + opaque)
            bottom = load_row(
                p_row, strides[1] + opaque, strides[3], ks, io.classes, left, right, fx, BLEND_X, PADDING, ACC
            )
        else:
            p_row = p_image + (y * strides[2] + opaque)
            top = load_row(
                p_row, strides[1] + opaque, strides[3], ks, io.classes, left, right, fx, BLEND_X, PADDING, ACC
            )
        g_bottom = zero_blocks(ks, C * R, ACC)
        mine = inside & (y >= y_counts)  # pixels whose loss counts here
        for Y in range(lo, hi):
            n = (image * io.rows.labels + Y) * io.cols.labels + X
            pixels = (image, Y, X, n, inside, mine, opaque)
            fy = fraction(io.rows, Y, y, ACC)
            z = top
            if BLEND_Y:
                z = blend(top, bottom, fy)
            if PHASE == "statistics":
                totals = statistics_row(io, z, ks, k0, pixels, w_all, totals, GAMMA, SMOOTHING, IGNORE, BK, KALL)
            else:
                if PHASE == "softmax":
                    totals, v, c = softmax_row(io, z, ks, pixels, w_all, totals, GAMMA, SMOOTHING, IGNORE)
                elif PHASE == "given":
                    v, c = given_row(io, z, ks, pixels, SMOOTHING, IGNORE)
                else:
                    totals, v, c = sigmoid_row(io, z, ks, k0, pixels, totals, DENSE, GAMMA, ALPHA, IGNORE)
                if io.grad is not None and BLEND_Y:
                    g_top = multiply_add(((1.0 - fy) * c)[None, :], v, g_top)
                    g_bottom = multiply_add((fy * c)[None, :], v, g_bottom)
                elif io.grad is not None:
                    g_top = multiply_add(c[None, :], v, g_top)
        if io.grad is not None:
            if y >= y_cells:
                p_grad = io.grad.data + tl.program_id(2).to(tl.int64) * io.grad.strides[4] + image * io.grad.strides[0]
                p_row = p_grad + y * io.grad.strides[2]
                fold_and_store(p_row, io.grad.strides[1] + opaque, io.grad.strides[3], g_top, ks, io.classes, x_cell,
                               my_cells, fx, C, R, BLEND_X, ACC)  # fmt: skip
            g_top = g_bottom
        top = bottom
        lo = hi
    return totals


@triton.jit
def walk(io, PHASE: tl.constexpr, DENSE: tl.constexpr, GAMMA: tl.constexpr, SMOOTHING: tl.constexpr,
         ALPHA: tl.constexpr, IGNORE: tl.constexpr, KS: tl.constexpr, BK: tl.constexpr, KALL: tl.constexpr,
         C: tl.constexpr, R: tl.constexpr, CH: tl.constexpr, BLEND_Y: tl.constexpr, BLEND_X: tl.constexpr,
         ACC: tl.constexpr):  # fmt: skip
    """One program: its tile's geometry, then its chunk of classes ("statistics": all chunks, one after the other)."""
    BEFORE_Y: tl.constexpr = 1 if BLEND_Y else 0  # intervals are numbered from -1
    BEFORE_X: tl.constexpr = 1 if BLEND_X else 0
    HALO_Y: tl.constexpr = BEFORE_Y if io.grad is not None else 0
    HALO_X: tl.constexpr = BEFORE_X if io.grad is not None else 0
    tiles_x = tl.cdiv(io.cols.cells + BEFORE_X - HALO_X, C - HALO_X)
    tiles_y = tl.cdiv(io.rows.cells + BEFORE_Y - HALO_Y, CH)
    pid = tl.program_id(0)
    i_x, i_y = pid % tiles_x, pid // tiles_x % tiles_y
    image = (pid // tiles_x // tiles_y).to(tl.int64)

    y_begin = (i_y * CH).to(tl.int64) - BEFORE_Y
    y_end = tl.minimum(y_begin + CH + HALO_Y, io.rows.cells)
    lane = tl.arange(0, C * R)
    x_begin = i_x * (C - HALO_X) - BEFORE_X
    x = x_begin + lane // R  # [P] intervals
    X = first_label(io.cols, x) + tl.program_id(2) * R + lane % R  # [P] label columns
    inside = first_label(io.cols, x + 1) > X
    # [P] the first interval row whose pixels count here; lanes of the neighbour to the left have none
    y_mine = y_begin + tl.where(i_y == 0, 0, HALO_Y)
    y_counts = tl.where(lane // R >= tl.where(i_x == 0, 0, HALO_X), y_mine, y_end)
    left = tl.minimum(tl.where(x < 0, 1, x), io.cols.cells - 1).to(tl.int64)[None, :]  # interval -1: as `tile` has it
    right = tl.minimum(x + 1, io.cols.cells - 1).to(tl.int64)[None, :]
    fx = tl.where(inside, fraction(io.cols, X, x, ACC), 0.0)[None, :]
    cell = tl.arange(0, C)
    x_cell = (x_begin + cell).to(tl.int64)[None, :]
    my_cells = ((cell >= HALO_X) & (x_begin + cell < io.cols.cells))[None, :]
    geometry = (image, y_begin, y_begin + HALO_Y, y_end, left, right, fx, X, inside, y_counts, x_cell, my_cells)

    totals = no_totals(C * R)
    w_all = weight_sum(io.weight, io.classes, KALL, ACC)
    if PHASE == "statistics":
        for k0 in range(0, io.classes, BK):
            totals = tile(io, k0, geometry, w_all, totals, PHASE, DENSE, GAMMA, SMOOTHING, ALPHA, IGNORE, KS, BK, KALL,
                          C, R, BLEND_Y, BLEND_X, ACC)  # fmt: skip
            tl.debug_barrier()  # a lane may meet its state in another thread
    else:
        totals = tile(io, tl.program_id(1) * BK, geometry, w_all, totals, PHASE, DENSE, GAMMA, SMOOTHING, ALPHA, IGNORE,
                      KS, BK, KALL, C, R, BLEND_Y, BLEND_X, ACC)  # fmt: skip
    if io.partials is not None:
        program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * tl.num_programs(0) + pid
        store_totals(io.partials + program * 8, totals)
