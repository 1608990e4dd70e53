"""Epilogues of the lovasz family, for the walk of engines/resized/triton_kernels/walk.py.

Forward adds the errors to the histogram; backward makes the gradient from that of the sums. "softmax": all classes of a
label pixel at once. "statistics": chunk by chunk, with the state of a pixel in memory. "dots": with it, in backward
alone, what a gradient shares with all classes. "chunk": any chunk, from the state. Derivation: docs/kernels/lovasz.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...core.triton_kernels import exp, plain
from ...engines.resized.triton_kernels.softmax import finite, softmax_grad, take_classes, weigh
from ...engines.resized.triton_kernels.sums import add_extras, no_extras, store_extras
from ...engines.resized.triton_kernels.tiles import Epilogue, load_labels
from .bins import add_others, add_own, fixed, no_own, set_of, store_own


class Tensors(NamedTuple):
    """Tensors that a walk reads and writes; None for those that it does not."""

    input: Any  # [B, K, h, w]
    target: Any  # [B, H, W]
    bins: Any  # N, disguised
    weight: Any = None  # always
    state: Any = None  # 3, in backward 4 times [B, H, W], see `statistics_row` and `dots_row`
    histogram: Any = None  # Histogram
    extras: Any = None  # [programs, 4] float64
    table: Any = None  # [S, K, 2, N], gradients of the sums
    grad: Any = None  # [B, K, h, w], or [parts, B, K, h, w] in the accumulator dtype


class Form(NamedTuple):
    """The family's constants, for which a walk is compiled."""

    PHASE: Any  # which epilogue
    BACKWARD: Any
    PER_IMAGE: Any


class Coefs(NamedTuple):
    """The gradient of a label pixel, each [P]: dL/dz_k = scale v_k with v_t = at_target, else, with e_k =
    exp(z_k - row_max),

    v_k = e_k (dL/dp_k + shift)
    """

    scale: Any
    shift: Any
    at_target: Any


@triton.jit
def table_of(io, params, image, form):
    """Gradients of the sums of an image, [K, 2, N]."""
    return io.table + set_of(image, form) * params.classes * 2 * plain(io.bins)


@triton.jit
def load_nothing(io, params, k0, ks, at, form, kind):
    return k0


@triton.jit
def probability_grads(io, params, exps, ks, k0, image, scale, form):
    """dL/dp_k of all classes but the label's, blocks [k, P]; 0 in bin 0. exps is 0 at the label."""
    bins = plain(io.bins)
    p_chunk = table_of(io, params, image, form) + tl.cast(k0, tl.int64) * 2 * bins
    out = ()
    for i in tl.static_range(len(ks)):
        bin = fixed(exps[i] * scale[None, :], bins, 0)
        counted = (bin > 0) & (ks[i] < params.classes - k0)
        # as in `add_others`
        p_slope = tl.max_contiguous(p_chunk + (ks[i] * (2 * bins).to(tl.int32) + bin), (1, 2))
        out += (tl.load(p_slope, mask=counted, other=0.0),)
    return out


@triton.jit
def finish_forward(io, params, pixels, labels, row_max, others, target_logit, carry, form):
    """(carry, 1 / s); the latter is 0 if the pixel is not valid."""
    extras, own = carry
    inverse = 1.0 / (others + exp(target_logit - finite(row_max)))
    error = others * inverse
    extras = add_extras(extras, error - error, labels)  # NaN if the error is
    own = add_own(io, params, own, error, labels, pixels.image, form)
    return (extras, own), tl.where(labels.valid, inverse, 0.0)


@triton.jit
def finish_backward(io, params, pixels, labels, others, e_t, dot, form):
    """Coefs from complete statistics and dot = sum e_k dL/dp_k over k != t."""
    bins = plain(io.bins)
    inverse = 1.0 / (others + e_t)
    bin = fixed(others * inverse, bins, 0)
    p_label = table_of(io, params, pixels.image, form) + (labels.label.to(tl.int64) * 2 + 1) * bins
    c_t = -tl.load(p_label + bin, mask=labels.valid, other=0.0)
    # e_t / s (c_t others - dot): no difference of nearly equal numbers as p_t approaches 1
    at_target = e_t * inverse * (c_t * others - dot)
    return Coefs(tl.where(labels.valid, inverse, 0.0), -(dot + e_t * c_t) * inverse, at_target)


@triton.jit
def softmax_row(io, params, z, ks, k0, pixels, carry, form, kind):
    """Epilogue "softmax": all classes are here."""
    labels = load_labels(io.target, pixels, params, params.classes)
    low = tl.full(labels.label.shape, float("-inf"), kind.ACC)
    zero = tl.zeros(labels.label.shape, kind.ACC)
    row_max, others, target_logit, exps = take_classes(z, ks, labels.label, pixels.opaque, low, zero, low)
    if form.BACKWARD:
        e_t = exp(target_logit - finite(row_max))
        scale = tl.where(labels.valid, 1.0 / (others + e_t), 0.0)
        c = probability_grads(io, params, exps, ks, k0, pixels.image, scale, form)
        coefs = finish_backward(io, params, pixels, labels, others, e_t, weigh(exps, c, zero), form)
        return carry, softmax_grad(exps, c, ks, labels.label - pixels.opaque, coefs), coefs
    else:
        carry, inverse = finish_forward(io, params, pixels, labels, row_max, others, target_logit, carry, form)
        add_others(io, params, exps, ks, k0, pixels.image, inverse, form)
        return carry, z, Coefs(zero, zero, zero)


@triton.jit
def statistics_row(io, params, z, ks, k0, pixels, carry, form, kind):
    """Epilogue "statistics": one chunk of classes.

    The state passes row_max, others, target_logit from chunk to chunk. After the last one, forward leaves row_max and
    1 / s.
    """
    labels = load_labels(io.target, pixels, params, params.classes)
    n, inside = pixels.n, pixels.inside
    seen = tl.where(inside, k0, 0) > 0
    row_max = tl.load(io.state[0] + n, mask=seen, other=float("-inf"))
    others = tl.load(io.state[1] + n, mask=seen, other=0.0)
    target_logit = tl.load(io.state[2] + n, mask=seen, other=float("-inf"))
    row_max, others, target_logit, _ = take_classes(
        z, ks, labels.label - k0, pixels.opaque, row_max, others, target_logit
    )
    tl.store(io.state[0] + n, row_max, mask=inside)
    tl.store(io.state[2] + n, target_logit, mask=inside)
    second = others
    if io.extras is not None:  # in forward
        last = k0 + kind.BK >= params.classes
        if last:
            carry, second = finish_forward(io, params, pixels, labels, row_max, others, target_logit, carry, form)
    tl.store(io.state[1] + n, second, mask=inside)
    return carry, z, Coefs(others, others, others)


@triton.jit
def other_exps(z, ks, label, row_max):
    """Blocks of exp(z_k - row_max), 0 at the label."""
    out = ()
    for i in tl.static_range(len(ks)):
        out += (tl.where(ks[i] == label[None, :], 0.0, exp(z[i] - finite(row_max)[None, :])),)
    return out


@triton.jit
def dots_row(io, params, z, ks, k0, pixels, carry, form, kind):
    """Epilogue "dots": one chunk of classes, from the state that "statistics" left.

    It passes dot = sum e_k dL/dp_k from chunk to chunk. The last one leaves row_max and Coefs.
    """
    labels = load_labels(io.target, pixels, params, params.classes)
    n, inside = pixels.n, pixels.inside
    row_max = tl.load(io.state[0] + n, mask=inside, other=float("inf"))
    others = tl.load(io.state[1] + n, mask=inside, other=1.0)
    e_t = exp(tl.load(io.state[2] + n, mask=inside, other=float("-inf")) - finite(row_max))
    dot = tl.load(io.state[3] + n, mask=tl.where(inside, k0, 0) > 0, other=0.0)
    exps = other_exps(z, ks, labels.label - k0, row_max)
    scale = tl.where(labels.valid, 1.0 / (others + e_t), 0.0)
    dot = weigh(exps, probability_grads(io, params, exps, ks, k0, pixels.image, scale, form), dot)
    if k0 + kind.BK >= params.classes:
        coefs = finish_backward(io, params, pixels, labels, others, e_t, dot, form)
        tl.store(io.state[1] + n, coefs.scale, mask=inside)
        tl.store(io.state[2] + n, coefs.shift, mask=inside)
        dot = coefs.at_target
    tl.store(io.state[3] + n, dot, mask=inside)
    return carry, z, Coefs(dot, dot, dot)


@triton.jit
def chunk_row(io, params, z, ks, k0, pixels, carry, form, kind):
    """Epilogue "chunk": errors or gradient of a chunk of classes, from the state."""
    label = load_labels(io.target, pixels, params, params.classes).label - k0
    n, inside = pixels.n, pixels.inside
    row_max = tl.load(io.state[0] + n, mask=inside, other=float("inf"))
    scale = tl.load(io.state[1] + n, mask=inside, other=0.0)
    exps = other_exps(z, ks, label, row_max)
    if form.BACKWARD:
        shift = tl.load(io.state[2] + n, mask=inside, other=0.0)
        coefs = Coefs(scale, shift, tl.load(io.state[3] + n, mask=inside, other=0.0))
        c = probability_grads(io, params, exps, ks, k0, pixels.image, scale, form)
        return carry, softmax_grad(exps, c, ks, label, coefs), coefs
    else:
        add_others(io, params, exps, ks, k0, pixels.image, scale, form)
        return carry, z, Coefs(scale, scale, scale)


@triton.jit
def row(io, params, z, ks, k0, pixels, chunk, w_all, carry, form, kind):
    """One label row in the epilogue of the phase. -> (carry, v, Coefs)."""
    if form.PHASE == "softmax":
        return softmax_row(io, params, z, ks, k0, pixels, carry, form, kind)
    elif form.PHASE == "statistics":
        return statistics_row(io, params, z, ks, k0, pixels, carry, form, kind)
    elif form.PHASE == "dots":
        return dots_row(io, params, z, ks, k0, pixels, carry, form, kind)
    else:
        return chunk_row(io, params, z, ks, k0, pixels, carry, form, kind)


@triton.jit
def begin(form, kind):
    """(extras, own); what the phase does not add stays 0."""
    return no_extras(kind.C * kind.R), no_own(kind.C * kind.R)


@triton.jit
def end(io, params, k0, carry, form, kind):
    if io.extras is not None:
        extras, own = carry
        store_own(io.histogram, own, True)
        # programs of an image are next to each other
        program = tl.program_id(0).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)
        store_extras(io.extras + program * 4, extras, k0)


EPILOGUE = Epilogue(begin, load_nothing, row, end)
