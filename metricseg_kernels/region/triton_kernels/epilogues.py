"""Epilogues of the region family, for the walk of engines/resized/triton_kernels/walk.py.

Forward adds I, P and Y of each class and the pixel loss; backward makes the gradient from those of the sums.
"softmax": all classes of a label pixel at once. "statistics": chunk by chunk, with the state of a pixel in memory, from
which "chunk" takes what it needs for any chunk. "sigmoid": every class by itself. Derivation: docs/kernels/region.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...core.triton_kernels import exp
from ...engines.resized.triton_kernels.softmax import (
    RowStats,
    Terms,
    finite,
    softmax_grad,
    softmax_terms,
    take_classes,
    weigh,
    weight_sum,
    weighted_gap,
)
from ...engines.resized.triton_kernels.sums import add_extras, no_extras, store_extras
from ...engines.resized.triton_kernels.tiles import Epilogue, Labels, class_rows, load_labels, load_pixels
from .sums import no_sums, store_sums


class Tensors(NamedTuple):
    """Tensors that a walk reads and writes; None for those that it does not."""

    input: Any  # [B, K, h, w]
    target: Any  # labels [B, H, W], or soft [B, K, H, W]
    weight: Any = None  # [K]
    state: Any = None  # some of [B, H, W], see `statistics_row`
    grad_sums: Any = None  # [S, K, 3] float64
    grad_loss: Any = None  # [] float64
    grad: Any = None  # [B, K, h, w], or [parts, B, K, h, w] in the accumulator dtype
    sums: Any = None  # [programs, K, 3] float64
    extras: Any = None  # [programs, 4] float64


class Form(NamedTuple):
    """The family's constants, for which a walk is compiled."""

    PHASE: Any  # which epilogue
    BACKWARD: Any
    DENSE: Any  # whether the target is [B, K, H, W]
    PIXEL_LOSS: Any
    POWER: Any  # gamma if that is 0, 1 or 2, else -1
    PER_IMAGE: Any
    SUM: Any  # dtype of the sums of a lane


class Coefs(NamedTuple):
    """The gradient of a label pixel, each [P]: dL/dz_k = scale v_k - b w_k with v_t = at_target, else, with e_k =
    exp(z_k - row_max),

    v_k = e_k (dL/dp_k + shift)
    """

    scale: Any
    shift: Any
    at_target: Any
    b: Any


@triton.jit
def load_target(io, params, pixels, form, kind):
    """Labels of a label row. A mask of a single class: 0 for class 0, else -1. Soft targets: -1, and whether valid."""
    inside = pixels.inside
    if form.DENSE:  # a pixel is ignored if its first channel is ignore_index
        first = load_pixels(io.target, params.target, pixels).to(kind.ACC)
        valid = inside & (first != params.ignore_index.to(kind.ACC))
        nowhere = tl.full(inside.shape, -1, tl.int32)
        return Labels(valid=valid, bad=inside != inside, label=nowhere, raw=nowhere)
    else:
        labels = load_labels(io.target, pixels, params, tl.maximum(params.classes, 2))
        label = labels.label - (params.classes == 1).to(tl.int32)
        return Labels(valid=labels.valid, bad=labels.bad, label=label, raw=labels.raw)


@triton.jit
def load_soft(io, params, pixels, k0, k, kind):
    """y of a block of classes, [k, P]; 0 where there is none."""
    p_rows = class_rows(io.target, params.target, pixels, k0, k)
    p_target = tl.max_contiguous(p_rows + pixels.X[None, :] * params.target[3], (1, 2))  # as in `load_row`
    mask = (k < params.classes - k0) & pixels.inside[None, :]
    return tl.load(p_target, mask=mask, other=0.0).to(kind.ACC)


@triton.jit
def sums_of(io, image, form, params):
    """Gradients of the sums of an image, [K, 3]."""
    row = image if form.PER_IMAGE else 0
    return io.grad_sums + tl.cast(row, tl.int64) * params.classes * 3


@triton.jit
def load_grads(io, params, k0, ks, at, form, kind):
    """(dL/dI_k, dL/dP_k) of a chunk of classes, [k, 1] blocks each."""
    if form.BACKWARD:
        hits, mass = (), ()
        for i in tl.static_range(len(ks)):
            p_class = sums_of(io, at.image, form, params) + 3 * (k0 + ks[i])
            known = ks[i] < params.classes - k0
            hits += (tl.load(p_class, mask=known, other=0.0).to(kind.ACC),)
            mass += (tl.load(p_class + 1, mask=known, other=0.0).to(kind.ACC),)
        return hits, mass
    else:
        return k0


@triton.jit
def probability_grads(io, params, ks, k0, pixels, grads, form, kind):
    """dL/dp_k, blocks [k, P]; of labels dL/dP_k, [k, 1], for the other classes."""
    hits, mass = grads
    out = ()
    for i in tl.static_range(len(ks)):
        c = mass[i]
        if form.DENSE:
            c = c + hits[i] * load_soft(io, params, pixels, k0, ks[i], kind)
        out += (c,)
    return out


@triton.jit
def pixel_terms(io, params, labels, stats, w_all, form, kind):
    """(pixel loss, Terms); without a pixel loss 0, and of Terms the last two."""
    if form.PIXEL_LOSS:
        w_t = tl.full(labels.bad.shape, 1.0, kind.ACC)
        if io.weight is not None:
            w_t = tl.load(io.weight + labels.label, mask=labels.valid, other=0.0)
        _, value, terms = softmax_terms(stats, w_t, w_all, params, form.POWER, kind.SMOOTHED)
        return value, terms
    else:
        zero = tl.zeros(labels.bad.shape, kind.ACC)
        e_t = exp(stats.target_logit - finite(stats.row_max))
        return zero, Terms(zero, zero, e_t, stats.others + e_t)


@triton.jit
def finish_forward(io, params, labels, stats, w_all, extras, form, kind):
    """(extras, 1 / s, p_t); the last two are 0 if the pixel is not valid."""
    value, terms = pixel_terms(io, params, labels, stats, w_all, form, kind)
    inverse = 1.0 / terms.s
    target_p = tl.where(labels.valid, terms.e_t * inverse, 0.0)
    return add_extras(extras, value, labels), tl.where(labels.valid, inverse, 0.0), target_p


@triton.jit
def finish_backward(io, params, pixels, labels, stats, dot, w_all, form, kind):
    """Coefs from complete statistics and dot = sum e_k dL/dp_k over k != t."""
    _, terms = pixel_terms(io, params, labels, stats, w_all, form, kind)
    a, b, e_t, s = terms
    inverse = 1.0 / s
    all_classes = dot
    at_target = dot
    if not form.DENSE:
        # e_t / s (c_t others - dot): no difference of nearly equal numbers as p_t approaches 1
        p_class = sums_of(io, pixels.image, form, params) + 3 * labels.label
        c_t = tl.load(p_class, mask=labels.valid, other=0.0).to(kind.ACC)
        c_t += tl.load(p_class + 1, mask=labels.valid, other=0.0).to(kind.ACC)
        all_classes = dot + e_t * c_t
        at_target = e_t * inverse * (c_t * stats.others - dot)
    shift = -all_classes * inverse
    if form.PIXEL_LOSS:
        upstream = tl.load(io.grad_loss).to(kind.ACC)
        a = tl.where(labels.valid, a, 0.0) * upstream  # a pixel without a label has p = 0
        at_target -= a * stats.others
        shift += a
        if kind.SMOOTHED:
            b = tl.where(labels.valid, b, 0.0) * upstream
            at_target += b * w_all * e_t
            shift += b * w_all
    return Coefs(tl.where(labels.valid, inverse, 0.0), shift, at_target, b)


@triton.jit
def add_softmax(io, params, exps, ks, k0, pixels, label, valid, inverse, target_p, sums, form, kind):
    """I, P, Y with a label row added. Labels: exps is 0 at the label, and label -1 if not valid."""
    hits, mass, count = (), (), ()
    for i in tl.static_range(len(ks)):
        p = tl.where(valid[None, :], exps[i] * inverse[None, :], 0.0)
        mass += (sums[1][i] + p.to(form.SUM),)
        if form.DENSE:
            y = tl.where(valid[None, :], load_soft(io, params, pixels, k0, ks[i], kind), 0.0)
            y = tl.where(y >= 0.0, y, float("nan"))
            hits += (sums[0][i] + (p * y).to(form.SUM),)
            count += (sums[2][i] + y.to(form.SUM),)
        else:
            here = ks[i] == label[None, :]
            hits += (sums[0][i] + tl.where(here, target_p[None, :], 0.0).to(form.SUM),)
            count += (sums[2][i] + here.to(form.SUM),)
    return hits, mass, count


@triton.jit
def softmax_row(io, params, z, ks, k0, pixels, grads, w_all, carry, form, kind):
    """Epilogue "softmax": all classes are here."""
    labels = load_target(io, params, pixels, form, kind)
    low = tl.full(labels.label.shape, float("-inf"), kind.ACC)
    zero = tl.zeros(labels.label.shape, kind.ACC)
    row_max, others, target_logit, exps = take_classes(z, ks, labels.label, pixels.opaque, low, zero, low)
    gap = zero
    if kind.SMOOTHED:
        gap = weighted_gap(z, 0, ks, io.weight, params.classes, row_max)
    stats = RowStats(row_max, others, target_logit, gap)
    if form.BACKWARD:
        c = probability_grads(io, params, ks, k0, pixels, grads, form, kind)
        dot = weigh(exps, c, zero)
        coefs = finish_backward(io, params, pixels, labels, stats, dot, w_all, form, kind)
        return carry, softmax_grad(exps, c, ks, labels.label - pixels.opaque, coefs), coefs
    else:
        extras, inverse, target_p = finish_forward(io, params, labels, stats, w_all, carry[0], form, kind)
        label = labels.label - pixels.opaque
        sums = add_softmax(
            io, params, exps, ks, k0, pixels, label, labels.valid, inverse, target_p, carry[1], form, kind
        )
        return (extras, sums), z, Coefs(zero, zero, zero, zero)


@triton.jit
def statistics_row(io, params, z, ks, k0, pixels, grads, w_all, carry, form, kind):
    """Epilogue "statistics": one chunk of classes.

    The state passes row_max, others, target_logit, in backward dot, with label smoothing gap, from chunk to chunk.
    After the last it holds what "chunk" needs: row_max, 1 / s, p_t, or in backward row_max and Coefs.
    """
    labels = load_target(io, params, pixels, form, kind)
    n, inside = pixels.n, pixels.inside
    seen = tl.where(inside, k0, 0) > 0
    before = tl.load(io.state[0] + n, mask=seen, other=float("-inf"))
    others = tl.load(io.state[1] + n, mask=seen, other=0.0)
    target_logit = tl.load(io.state[2] + n, mask=seen, other=float("-inf"))
    row_max, others, target_logit, exps = take_classes(
        z, ks, labels.label - k0, pixels.opaque, before, others, target_logit
    )
    gap = tl.zeros(labels.label.shape, kind.ACC)
    dot = gap
    if form.BACKWARD:
        dot = tl.load(io.state[3] + n, mask=seen, other=0.0) * exp(before - finite(row_max))
        dot = weigh(exps, probability_grads(io, params, ks, k0, pixels, grads, form, kind), dot)
    if kind.SMOOTHED:
        gap = tl.load(io.state[-1] + n, mask=seen, other=0.0)
        gap += tl.where(seen, (row_max - before) * weight_sum(io.weight, k0, kind.KALL, kind.ACC), 0.0)
        gap += weighted_gap(z, k0, ks, io.weight, params.classes - k0, row_max)
    left = (row_max, others, target_logit, dot, gap)
    if k0 + kind.BK >= params.classes:
        stats = RowStats(row_max, others, target_logit, gap)
        if form.BACKWARD:
            coefs = finish_backward(io, params, pixels, labels, stats, dot, w_all, form, kind)
            left = (row_max, coefs.scale, coefs.shift, coefs.at_target, coefs.b)
        else:
            carry, inverse, target_p = finish_forward(io, params, labels, stats, w_all, carry, form, kind)
            left = (row_max, inverse, target_p, dot, gap)
    for i in tl.static_range(3):
        tl.store(io.state[i] + n, left[i], mask=inside)
    if form.BACKWARD:
        tl.store(io.state[3] + n, left[3], mask=inside)
    if kind.SMOOTHED:
        tl.store(io.state[-1] + n, left[4], mask=inside)
    return carry, z, Coefs(gap, gap, gap, gap)


@triton.jit
def chunk_row(io, params, z, ks, k0, pixels, grads, carry, form, kind):
    """Epilogue "chunk": sums or gradient of a chunk of classes, from the state."""
    n, inside = pixels.n, pixels.inside
    row_max = finite(tl.load(io.state[0] + n, mask=inside, other=float("inf")))
    scale = tl.load(io.state[1] + n, mask=inside, other=0.0)
    label = tl.full(inside.shape, -1, tl.int32)
    if not form.DENSE:
        label = load_target(io, params, pixels, form, kind).label - k0
    exps = ()
    for i in tl.static_range(len(ks)):
        e = exp(z[i] - row_max[None, :])
        if not form.DENSE and not form.BACKWARD:
            e = tl.where(ks[i] == label[None, :], 0.0, e)
        exps += (e,)
    third = tl.load(io.state[2] + n, mask=inside, other=0.0)
    if form.BACKWARD:
        b = third
        if kind.SMOOTHED:
            b = tl.load(io.state[-1] + n, mask=inside, other=0.0)
        coefs = Coefs(scale, third, tl.load(io.state[3] + n, mask=inside, other=0.0), b)
        c = probability_grads(io, params, ks, k0, pixels, grads, form, kind)
        return carry, softmax_grad(exps, c, ks, label, coefs), coefs
    else:
        valid = inside & (scale != 0.0)
        sums = add_softmax(io, params, exps, ks, k0, pixels, label, valid, scale, third, carry[1], form, kind)
        return (carry[0], sums), z, Coefs(scale, scale, scale, scale)


@triton.jit
def sigmoid_row(io, params, z, ks, k0, pixels, grads, carry, form, kind):
    """Epilogue "sigmoid": every class by itself."""
    labels = load_target(io, params, pixels, form, kind)
    zero = tl.zeros(labels.label.shape, kind.ACC)
    valid = labels.valid[None, :]
    v, hits, mass, count = (), (), (), ()
    for i in tl.static_range(len(ks)):
        if form.DENSE:
            y = tl.where(valid, load_soft(io, params, pixels, k0, ks[i], kind), 0.0)
        else:
            y = tl.where(ks[i] == (labels.label - k0)[None, :], 1.0, 0.0).to(kind.ACC)
        # e = exp(-|z|): the sigmoid of either sign without cancellation
        e = exp(-tl.abs(z[i]))
        inverse = 1.0 / (1.0 + e)
        if form.BACKWARD:
            v += (e * inverse * inverse * (grads[1][i] + grads[0][i] * y),)  # p (1 - p) dL/dp
        else:
            y = tl.where(y >= 0.0, y, float("nan"))
            known = valid & (ks[i] < params.classes - k0)
            p = tl.where(known, tl.where(z[i] >= 0.0, inverse, e * inverse), 0.0)
            hits += (carry[1][0][i] + (p * y).to(form.SUM),)
            mass += (carry[1][1][i] + p.to(form.SUM),)
            count += (carry[1][2][i] + y.to(form.SUM),)
    if form.BACKWARD:
        return carry, v, Coefs(tl.where(labels.valid, zero + 1.0, 0.0), zero, zero, zero)
    else:
        return (add_extras(carry[0], zero, labels), (hits, mass, count)), z, Coefs(zero, zero, zero, zero)


@triton.jit
def row(io, params, z, ks, k0, pixels, grads, w_all, carry, form, kind):
    """One label row in the epilogue of the phase. -> (carry, v, Coefs)."""
    if form.PHASE == "softmax":
        return softmax_row(io, params, z, ks, k0, pixels, grads, w_all, carry, form, kind)
    elif form.PHASE == "statistics":
        return statistics_row(io, params, z, ks, k0, pixels, grads, w_all, carry, form, kind)
    elif form.PHASE == "chunk":
        return chunk_row(io, params, z, ks, k0, pixels, grads, carry, form, kind)
    else:
        return sigmoid_row(io, params, z, ks, k0, pixels, grads, carry, form, kind)


@triton.jit
def begin(form, kind):
    """(extras, sums), without what the phase does not add."""
    extras = no_extras(kind.C * kind.R)
    if form.BACKWARD or form.PHASE == "statistics":
        return extras
    else:
        return extras, no_sums(form, kind)


@triton.jit
def end(io, params, k0, carry, form, kind):
    # programs of an image are next to each other
    program = tl.program_id(0).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
    if io.sums is not None:
        store_sums(io.sums + program * 3 * params.classes, carry[1], k0, params.classes, form, kind)
    if io.extras is not None:
        extras = carry if form.PHASE == "statistics" else carry[0]
        store_extras(io.extras + program * 4, extras, k0)


EPILOGUE = Epilogue(begin, load_grads, row, end)
