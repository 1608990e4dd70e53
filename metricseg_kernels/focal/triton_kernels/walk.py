"""Triton kernels of the focal family: one tile walk, four epilogues.

Grid: (image x tile of cells, class chunk, part of a very wide cell). A program owns CH rows x (C - 1) columns of cells
and walks down its intervals, the labels between four cell centers. Its P = C R lanes are label columns.
One thread holds all classes of a lane, so the reductions of the softmax are register arithmetic. In exchange,
intervals at the edge of two tiles are computed twice: there are no atomics, and sums have a fixed order.
Derivation, bytes and limits: docs/kernels/focal.md.
"""

import triton
import triton.language as tl

from ...engines.resized.triton_kernels import Axis, blend, class_blocks, first_label, fraction, load_row
from .math import (
    RowCoefs,
    RowStats,
    exp,
    finite,
    sigmoid_of_label,
    sigmoid_of_target,
    softmax_gradient,
    softmax_pixel,
    subtract_weights,
    take_classes,
    take_largest,
    weight_sum,
    weighted_gap,
)
from .reduce import add_totals, no_totals, store_totals
from .tiles import Geometry, Labels, Params, Pixels, fold_and_store, load_labels, load_pixels, multiply_add, zero_blocks


@triton.jit
def finish_softmax(io, params, pixels, labels, stats, best, w_all, totals, kind):
    """Loss, totals and RowCoefs from complete statistics."""
    valid, bad = labels.valid, labels.bad
    w_t = tl.full(bad.shape, 1.0, kind.ACC)
    if io.weight is not None:
        w_t = tl.load(io.weight + labels.label, mask=valid, other=0.0)
    nll, value, coefs = softmax_pixel(stats, w_t, w_all, params, kind.POWER, kind.SMOOTHED)
    if io.keep_above is not None:
        valid = valid & ((nll > tl.load(io.keep_above)) | (nll != nll))
    value = tl.where(bad, float("nan"), tl.where(valid, value, params.ignored_loss))
    if io.loss is not None:
        tl.store(io.loss + pixels.n, value, mask=pixels.mine)
    counted = valid & pixels.mine
    correct = counted & (best == labels.label)
    value = tl.where(pixels.mine, value, 0.0)
    totals = add_totals(totals, value, counted, w_t, correct, bad & pixels.mine, labels.raw)
    scale, b = coefs.scale, coefs.b
    if io.grad_loss is not None:
        upstream = load_pixels(io.grad_loss, params.grad_loss, pixels).to(kind.ACC)
        scale *= upstream
        b *= upstream
    scale, b = tl.where(valid, scale, 0.0), tl.where(valid, b, 0.0)
    return totals, RowCoefs(scale, tl.where(valid, coefs.at_target, 0.0), b)


@triton.jit
def softmax_row(io, params, z, ks, pixels, w_all, totals, kind):
    """Epilogue "softmax": all classes are here. -> (totals, v, RowCoefs), see `softmax_gradient`."""
    labels = load_labels(io.target, pixels, params)
    low = tl.full(labels.label.shape, float("-inf"), kind.ACC)
    zero = tl.zeros(labels.label.shape, kind.ACC)
    best = tl.zeros(labels.label.shape, tl.int32)
    if io.argmax is not None:
        best = take_largest(z, 0, low, best)
        tl.store(io.argmax + pixels.n, best, mask=pixels.mine)
    row_max, others, target_logit, exps = take_classes(z, ks, labels.label, pixels.opaque, low, zero, low)
    gap = zero
    if kind.SMOOTHED:
        gap = weighted_gap(z, 0, ks, io.weight, params.classes, row_max)
    stats = RowStats(row_max, others, target_logit, gap)
    totals, coefs = finish_softmax(io, params, pixels, labels, stats, best, w_all, totals, kind)
    return totals, softmax_gradient(exps, ks, labels.label - pixels.opaque, coefs), coefs


@triton.jit
def statistics_row(io, params, z, ks, k0, pixels, w_all, totals, kind):
    """Epilogue "statistics": one chunk of classes. The state [label pixels] passes RowStats from chunk to chunk; after
    the last it holds what "gradient" needs, row_max and RowCoefs."""
    labels = load_labels(io.target, pixels, params)
    n, mine = pixels.n, pixels.mine
    seen = tl.where(mine, k0, 0) > 0
    before = tl.load(io.state[0] + n, mask=seen, other=float("-inf"))
    best = tl.zeros(labels.label.shape, tl.int32)
    if io.argmax is not None:
        best = take_largest(z, k0, before, tl.load(io.argmax + n, mask=seen, other=0))
        tl.store(io.argmax + n, best, mask=mine)
    others = tl.load(io.state[1] + n, mask=seen, other=0.0)
    target_logit = tl.load(io.state[2] + n, mask=seen, other=float("-inf"))
    row_max, others, target_logit, _ = take_classes(
        z, ks, labels.label - k0, pixels.opaque, before, others, target_logit
    )
    gap = tl.zeros(labels.label.shape, kind.ACC)
    if kind.SMOOTHED:
        gap = tl.load(io.state[3] + n, mask=seen, other=0.0)
        gap += tl.where(seen, (row_max - before) * weight_sum(io.weight, k0, kind.KALL, kind.ACC), 0.0)
        gap += weighted_gap(z, k0, ks, io.weight, params.classes - k0, row_max)
    left = (row_max, others, target_logit, gap)
    if k0 + kind.BK >= params.classes:
        stats = RowStats(row_max, others, target_logit, gap)
        totals, coefs = finish_softmax(io, params, pixels, labels, stats, best, w_all, totals, kind)
        left = (row_max, coefs.scale, coefs.at_target, coefs.b)
    for i in tl.static_range(4 if kind.SMOOTHED else 3):
        tl.store(io.state[i] + n, left[i], mask=mine)
    return totals


@triton.jit
def gradient_row(io, params, z, ks, k0, pixels, kind):
    """Epilogue "gradient": the gradient of a chunk of classes, from the state. -> (v, RowCoefs)."""
    labels = load_labels(io.target, pixels, params)
    row_max = finite(tl.load(io.state[0] + pixels.n, mask=pixels.inside, other=float("inf")))
    scale = tl.load(io.state[1] + pixels.n, mask=pixels.inside, other=0.0)
    at_target = tl.load(io.state[2] + pixels.n, mask=pixels.inside, other=0.0)
    b = at_target
    if kind.SMOOTHED:
        b = tl.load(io.state[3] + pixels.n, mask=pixels.inside, other=0.0)
    exps = ()
    for i in tl.static_range(len(ks)):
        exps += (exp(z[i] - row_max[None, :]),)
    coefs = RowCoefs(scale, at_target, b)
    return softmax_gradient(exps, ks, labels.label - k0, coefs), coefs


@triton.jit
def class_rows(data, strides, pixels, k0, k):
    """Pointers to classes k0 + k of a label row, [k, 1]."""
    # as in `tile`, no address per class is to stay in registers, here across label rows
    Y = tl.cast(pixels.Y, tl.int64)
    s_k = strides[1] + (Y < 0).to(tl.int32)
    row = data + pixels.image * strides[0] + tl.cast(k0, tl.int64) * s_k + Y * strides[2]
    return row + tl.cast(k, tl.int64) * s_k


@triton.jit
def sigmoid_row(io, params, z, ks, k0, pixels, totals, kind):
    """Epilogue "sigmoid": every class by itself. -> (totals, v, RowCoefs), dl/dz_k = v_k."""
    inside, mine = pixels.inside, pixels.mine
    nowhere = tl.zeros(inside.shape, tl.int32)
    if kind.DENSE:  # a pixel is ignored if its first channel is ignore_index
        first = load_pixels(io.target, params.target, pixels).to(kind.ACC)
        valid = inside & (first != params.ignore_index.to(kind.ACC))
        labels = Labels(valid=valid, bad=inside != inside, label=nowhere, raw=nowhere)
    else:
        labels = load_labels(io.target, pixels, params)
    zero = tl.zeros(inside.shape, kind.ACC)
    value = zero
    # strides of the loss [B, K, H, W]
    width = tl.cast(params.cols.labels, tl.int64)
    area = width * params.rows.labels
    loss_strides = (area * params.classes, area, width)
    X = pixels.X[None, :]
    v = ()
    for i in tl.static_range(len(ks)):
        known = ks[i] < params.classes - k0
        if kind.DENSE:
            p_rows = class_rows(io.target, params.target, pixels, k0, ks[i])
            p_target = tl.max_contiguous(p_rows + X * params.target[3], (1, 2))  # as in `load_row`
            t = tl.load(p_target, mask=known & inside[None, :], other=0.0).to(kind.ACC)
            loss, grad = sigmoid_of_target(z[i], t, params, kind.POWER, kind.ALPHA)
            loss = tl.where((t >= 0.0) & (t <= 1.0), loss, float("nan"))
        else:
            positive = ks[i] == (labels.label - k0)[None, :]
            loss, grad = sigmoid_of_label(z[i], positive, params, kind.POWER, kind.ALPHA)
        loss = tl.where(labels.bad[None, :], float("nan"), tl.where(labels.valid[None, :], loss, 0.0))
        if io.loss is not None:
            p_rows = class_rows(io.loss, loss_strides, pixels, k0, ks[i])
            tl.store(tl.max_contiguous(p_rows + X, (1, 2)), loss, mask=known & mine[None, :])
        value += tl.sum(tl.where(known & mine[None, :], loss, 0.0), 0)
        if io.grad_loss is not None:
            p_rows = class_rows(io.grad_loss, params.grad_loss, pixels, k0, ks[i])
            p_upstream = tl.max_contiguous(p_rows + X * params.grad_loss[3], (1, 2))
            grad *= tl.load(p_upstream, mask=known & inside[None, :], other=0.0).to(kind.ACC)
        v += (tl.where(known & labels.valid[None, :], grad, 0.0),)
    counted = tl.where(mine, k0, 1) == 0
    nothing = inside != inside
    totals = add_totals(totals, value, labels.valid & counted, zero, nothing, labels.bad & counted, labels.raw)
    return totals, v, RowCoefs(scale=zero + 1.0, at_target=zero, b=zero)


@triton.jit
def tile(io, params, k0, at, w_all, totals, kind):
    """Walk the chunk of classes that begins at k0 down the intervals [y_begin, y_end) of a tile."""
    rows, cols = params.rows, params.cols
    count = params.classes - k0
    # The logit of no class: -inf, but finite if a factor may be 0
    PADDING: tl.constexpr = -1e38 if kind.BLEND_Y or kind.BLEND_X else float("-inf")
    s_b, s_k, s_y, s_x = params.input
    p_image = io.input + at.image * s_b + tl.cast(k0, tl.int64) * s_k
    ks = class_blocks(kind.KS)
    lo = first_label(rows, at.y_begin)
    # A label index is never negative, but the compiler can't infer that. With this 0 in a stride it keeps no address
    # per class in registers across the loop; with it in a row's address, it can't take that for aligned.
    opaque = (lo < 0).to(tl.int32)
    # Interval -1 weighs its upper row by 0. That is row 1, as in F.interpolate, whose 0 * inf is NaN there too.
    y_top = tl.minimum(tl.where(at.y_begin < 0, 1, at.y_begin), rows.cells - 1)
    p_row = p_image + (y_top * s_y + opaque)
    top = load_row(p_row, s_k, s_x, ks, count, at, kind.BLEND_X, PADDING, kind.ACC)
    g_top = zero_blocks(ks, kind.C * kind.R, kind.ACC)
    b_top = tl.zeros((kind.C * kind.R,), kind.ACC)
    for y in range(at.y_begin, at.y_end):
        bottom = top
        hi = first_label(rows, y + 1)
        opaque = (hi < 0).to(tl.int32)
        if kind.BLEND_Y:
            p_row = p_image + (tl.minimum(y + 1, rows.cells - 1) * s_y + opaque)
            bottom = load_row(p_row, s_k + opaque, s_x, ks, count, at, kind.BLEND_X, PADDING, kind.ACC)
        else:
            p_row = p_image + (y * s_y + opaque)
            top = load_row(p_row, s_k + opaque, s_x, ks, count, at, kind.BLEND_X, PADDING, kind.ACC)
        g_bottom = zero_blocks(ks, kind.C * kind.R, kind.ACC)
        b_bottom = tl.zeros((kind.C * kind.R,), kind.ACC)
        mine = at.inside & (y >= at.y_counts)  # pixels whose loss counts here
        for Y in range(lo, hi):
            n = (at.image * rows.labels + Y) * cols.labels + at.X
            pixels = Pixels(image=at.image, Y=Y, X=at.X, n=n, inside=at.inside, mine=mine, opaque=opaque)
            fy = fraction(rows, Y, y, kind.ACC)
            z = top
            if kind.BLEND_Y:
                # beyond the last row of cells both are equal, and 0 would make NaN of an infinity
                z = blend(top, bottom, tl.where(y + 1 < rows.cells, fy, 0.5).to(kind.ACC))
            if kind.PHASE == "statistics":
                totals = statistics_row(io, params, z, ks, k0, pixels, w_all, totals, kind)
            else:
                if kind.PHASE == "softmax":
                    totals, v, coefs = softmax_row(io, params, z, ks, pixels, w_all, totals, kind)
                elif kind.PHASE == "gradient":
                    v, coefs = gradient_row(io, params, z, ks, k0, pixels, kind)
                else:
                    totals, v, coefs = sigmoid_row(io, params, z, ks, k0, pixels, totals, kind)
                if io.grad is not None and kind.BLEND_Y:
                    g_top = multiply_add(((1.0 - fy) * coefs.scale)[None, :], v, g_top)
                    g_bottom = multiply_add((fy * coefs.scale)[None, :], v, g_bottom)
                    if kind.SMOOTHED:
                        b_top += (1.0 - fy) * coefs.b
                        b_bottom += fy * coefs.b
                elif io.grad is not None:
                    g_top = multiply_add(coefs.scale[None, :], v, g_top)
                    if kind.SMOOTHED:
                        b_top += coefs.b
        if io.grad is not None:
            if y >= at.y_cells:
                g_b, g_k, g_y, g_x = params.grad
                p_grad = io.grad + tl.program_id(2).to(tl.int64) * params.grad_part + at.image * g_b + y * g_y
                p_grad += tl.cast(k0, tl.int64) * g_k
                g = g_top
                if kind.SMOOTHED:
                    g = subtract_weights(g_top, b_top, k0, ks, io.weight, count)
                fold_and_store(p_grad, g_k + opaque, g_x, g, ks, count, at, kind.C, kind.R, kind.BLEND_X)
            b_top = b_bottom
            g_top = g_bottom
        top = bottom
        lo = hi
    return totals


@triton.jit
def tile_geometry(params, height, with_grad: tl.constexpr, kind):
    """The tile of this program."""
    rows, cols = params.rows, params.cols
    BEFORE_Y: tl.constexpr = 1 if kind.BLEND_Y else 0  # intervals are numbered from -1
    BEFORE_X: tl.constexpr = 1 if kind.BLEND_X else 0
    HALO_Y: tl.constexpr = BEFORE_Y if with_grad else 0
    HALO_X: tl.constexpr = BEFORE_X if with_grad else 0
    C: tl.constexpr = kind.C
    R: tl.constexpr = kind.R
    tiles_x = tl.cdiv(cols.cells + BEFORE_X - HALO_X, C - HALO_X).to(tl.int32)
    tiles_y = tl.cdiv(rows.cells + BEFORE_Y - HALO_Y, height).to(tl.int32)
    pid = tl.program_id(0)
    i_x, i_y = pid % tiles_x, pid // tiles_x % tiles_y

    y_begin = i_y * height - BEFORE_Y
    y_end = tl.minimum(y_begin + height + HALO_Y, rows.cells)
    lane = tl.arange(0, C * R)
    x_begin = i_x * (C - HALO_X) - BEFORE_X
    x = x_begin + lane // R  # [P] intervals
    X = first_label(cols, x) + tl.program_id(2) * R + lane % R  # [P] label columns
    inside = first_label(cols, x + 1) > X
    # lanes of the neighbor to the left count nothing here
    y_mine = y_begin + tl.where(i_y == 0, 0, HALO_Y)
    cell = tl.arange(0, C)
    return Geometry(
        image=(pid // tiles_x // tiles_y).to(tl.int64),
        y_begin=y_begin,
        y_cells=y_begin + HALO_Y,
        y_end=y_end,
        left=tl.minimum(tl.where(x < 0, 1, x), cols.cells - 1)[None, :],  # interval -1: see `tile`
        right=tl.minimum(x + 1, cols.cells - 1)[None, :],
        # not 0 for an idle lane: a NaN in it would reach its cells
        fx=tl.where(inside, fraction(cols, X, x, kind.ACC), 0.5)[None, :],
        X=X,
        inside=inside,
        y_counts=tl.where(lane // R >= tl.where(i_x == 0, 0, HALO_X), y_mine, y_end),
        x_cell=(x_begin + cell).to(tl.int64)[None, :],
        my_cells=((cell >= HALO_X) & (x_begin + cell < cols.cells))[None, :],
    )


# Numbers are arguments of their own: Triton compiles anew for a 1, a multiple of 16 or a large integer within a tuple,
# on which do_not_specialize has no effect. Arguments also stay in constant memory and take no registers.
@triton.jit(do_not_specialize=list(range(2, 36)))
def walk(
    io, kind, gamma: tl.float64, smoothing: tl.float64, alpha: tl.float64, ignore_index: tl.int64,
    ignored_loss: tl.float64, classes: tl.int32, height: tl.int32,
    y_cells: tl.int32, y_labels: tl.int32, y_mul: tl.int32, y_add: tl.int32, y_den: tl.int32,
    x_cells: tl.int32, x_labels: tl.int32, x_mul: tl.int32, x_add: tl.int32, x_den: tl.int32,
    input_b: tl.int64, input_k: tl.int64, input_y: tl.int64, input_x: tl.int64,
    target_b: tl.int64, target_k: tl.int64, target_y: tl.int64, target_x: tl.int64,
    upstream_b: tl.int64, upstream_k: tl.int64, upstream_y: tl.int64, upstream_x: tl.int64,
    grad_b: tl.int64, grad_k: tl.int64, grad_y: tl.int64, grad_x: tl.int64, grad_part: tl.int64,
):  # fmt: skip
    """One program: its tile's geometry, then its chunk of classes ("statistics": all chunks, one after the other)."""
    params = Params(
        gamma=tl.full((), gamma, kind.ACC),
        smoothing=tl.full((), smoothing, kind.ACC),
        alpha=tl.full((), alpha, kind.ACC),
        ignore_index=ignore_index,
        ignored_loss=tl.full((), ignored_loss, kind.ACC),
        classes=classes,
        rows=Axis(y_cells, y_labels, y_mul, y_add, y_den),
        cols=Axis(x_cells, x_labels, x_mul, x_add, x_den),
        input=(input_b, input_k, input_y, input_x),
        target=(target_b, target_k, target_y, target_x),
        grad_loss=(upstream_b, upstream_k, upstream_y, upstream_x),
        grad=(grad_b, grad_k, grad_y, grad_x),
        grad_part=grad_part,
    )
    at = tile_geometry(params, height, io.grad is not None, kind)
    totals = no_totals(kind.C * kind.R)
    w_all = weight_sum(io.weight, params.classes, kind.KALL, kind.ACC)
    if kind.PHASE == "statistics":
        for k0 in range(0, params.classes, kind.BK):
            totals = tile(io, params, k0, at, w_all, totals, kind)
            tl.debug_barrier()  # another thread may have written a lane's state
    elif kind.PHASE == "softmax":
        totals = tile(io, params, 0, at, w_all, totals, kind)  # a constant, which saves registers
    else:
        totals = tile(io, params, tl.program_id(1) * kind.BK, at, w_all, totals, kind)
    if io.partials is not None:
        program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * tl.num_programs(0)
        store_totals(io.partials + (program + tl.program_id(0)) * 8, totals)
