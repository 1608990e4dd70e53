"""Epilogues of the focal family, for the walk of engines/resized/triton_kernels/walk.py: loss, totals and gradient.

"softmax": all classes of a label pixel at once. "statistics": chunk by chunk, with the state of a pixel in memory, from
which "gradient" makes the gradient of any chunk. "sigmoid": every class by itself. Derivation: docs/kernels/focal.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...core.triton_kernels import exp
from ...engines.resized.triton_kernels.softmax import (
    RowStats,
    finite,
    take_classes,
    weight_sum,
    weighted_gap,
)
from ...engines.resized.triton_kernels.tiles import Epilogue, Labels, class_rows, load_labels, load_pixels
from .math import RowCoefs, sigmoid_of_label, sigmoid_of_target, softmax_gradient, softmax_pixel, take_largest
from .reduce import add_totals, no_totals, store_totals


class Tensors(NamedTuple):
    """Tensors that a walk reads and writes; None for those that it does not."""

    input: Any  # [B, K, h, w]
    target: Any  # [B, H, W] or [B, K, H, W]
    weight: Any = None  # [K]
    keep_above: Any = None  # []
    grad_loss: Any = None  # like loss, or []
    loss: Any = None  # [B, H, W] or [B, K, H, W]
    argmax: Any = None  # [B, H, W]
    grad: Any = None  # [B, K, h, w], or [parts, B, K, h, w] in the accumulator dtype
    state: Any = None  # 3 or, with label smoothing, 4 times [B, H, W]
    partials: Any = None  # [programs, 8]


class Form(NamedTuple):
    """The family's constants, for which a walk is compiled."""

    PHASE: Any  # which epilogue
    DENSE: Any  # whether the target is [B, K, H, W]
    POWER: Any  # gamma if that is 0, 1 or 2, else -1
    ALPHA: Any  # whether the positives have a weight


@triton.jit
def finish_softmax(io, params, pixels, labels, stats, best, w_all, totals, form, kind):
    """Loss, totals and RowCoefs from complete statistics."""
    valid, bad = labels.valid, labels.bad
    w_t = tl.full(bad.shape, 1.0, kind.ACC)
    if io.weight is not None:
        w_t = tl.load(io.weight + labels.label, mask=valid, other=0.0)
    nll, value, coefs = softmax_pixel(stats, w_t, w_all, params, form.POWER, kind.SMOOTHED)
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
def softmax_row(io, params, z, ks, pixels, w_all, totals, form, kind):
    """Epilogue "softmax": all classes are here. -> (totals, v, RowCoefs), see `softmax_gradient`."""
    labels = load_labels(io.target, pixels, params, params.classes)
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
    totals, coefs = finish_softmax(io, params, pixels, labels, stats, best, w_all, totals, form, kind)
    return totals, softmax_gradient(exps, ks, labels.label - pixels.opaque, coefs), coefs


@triton.jit
def statistics_row(io, params, z, ks, k0, pixels, w_all, totals, form, kind):
    """Epilogue "statistics": one chunk of classes. The state [label pixels] passes RowStats from chunk to chunk; after
    the last it holds what "gradient" needs, row_max and RowCoefs."""
    labels = load_labels(io.target, pixels, params, params.classes)
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
        totals, coefs = finish_softmax(io, params, pixels, labels, stats, best, w_all, totals, form, kind)
        left = (row_max, coefs.scale, coefs.at_target, coefs.b)
    for i in tl.static_range(4 if kind.SMOOTHED else 3):
        tl.store(io.state[i] + n, left[i], mask=mine)
    return totals, z, RowCoefs(gap, gap, gap)


@triton.jit
def gradient_row(io, params, z, ks, k0, pixels, totals, kind):
    """Epilogue "gradient": the gradient of a chunk of classes, from the state. -> (totals, v, RowCoefs)."""
    labels = load_labels(io.target, pixels, params, params.classes)
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
    return totals, softmax_gradient(exps, ks, labels.label - k0, coefs), coefs


@triton.jit
def sigmoid_row(io, params, z, ks, k0, pixels, totals, form, kind):
    """Epilogue "sigmoid": every class by itself. -> (totals, v, RowCoefs), dl/dz_k = v_k."""
    inside, mine = pixels.inside, pixels.mine
    nowhere = tl.zeros(inside.shape, tl.int32)
    if form.DENSE:  # a pixel is ignored if its first channel is ignore_index
        first = load_pixels(io.target, params.target, pixels).to(kind.ACC)
        valid = inside & (first != params.ignore_index.to(kind.ACC))
        labels = Labels(valid=valid, bad=inside != inside, label=nowhere, raw=nowhere)
    else:
        labels = load_labels(io.target, pixels, params, params.classes)
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
        if form.DENSE:
            p_rows = class_rows(io.target, params.target, pixels, k0, ks[i])
            p_target = tl.max_contiguous(p_rows + X * params.target[3], (1, 2))  # as in `load_row`
            t = tl.load(p_target, mask=known & inside[None, :], other=0.0).to(kind.ACC)
            loss, grad = sigmoid_of_target(z[i], t, params, form.POWER, form.ALPHA)
            loss = tl.where((t >= 0.0) & (t <= 1.0), loss, float("nan"))
        else:
            positive = ks[i] == (labels.label - k0)[None, :]
            loss, grad = sigmoid_of_label(z[i], positive, params, form.POWER, form.ALPHA)
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
def row(io, params, z, ks, k0, pixels, chunk, w_all, totals, form, kind):
    """One label row in the epilogue of the phase. -> (totals, v, RowCoefs)."""
    if form.PHASE == "softmax":
        return softmax_row(io, params, z, ks, pixels, w_all, totals, form, kind)
    elif form.PHASE == "statistics":
        return statistics_row(io, params, z, ks, k0, pixels, w_all, totals, form, kind)
    elif form.PHASE == "gradient":
        return gradient_row(io, params, z, ks, k0, pixels, totals, kind)
    else:
        return sigmoid_row(io, params, z, ks, k0, pixels, totals, form, kind)


@triton.jit
def begin(form, kind):
    return no_totals(kind.C * kind.R)


@triton.jit
def load_nothing(io, params, k0, ks, at, form, kind):
    return k0


@triton.jit
def end(io, params, k0, totals, form, kind):
    if io.partials is not None:
        program = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64) * tl.num_programs(0)
        store_totals(io.partials + (program + tl.program_id(0)) * 8, totals)


EPILOGUE = Epilogue(begin, load_nothing, row, end)
