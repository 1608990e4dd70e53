"""Epilogues of the distill family, for the walk of engines/resized/triton_kernels/walk.py over the own map.

"whole": all classes of a label pixel at once. "statistics": chunk by chunk, with the state of a pixel in memory, and
for "js" once more in "divergence"; from that "gradient" makes the gradient of any chunk. Derivation:
docs/kernels/distill.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...core.triton_kernels import divide, exp
from ...engines.resized.triton_kernels.softmax import finite
from ...engines.resized.triton_kernels.sums import add_rows
from ...engines.resized.triton_kernels.tiles import Epilogue, load_pixels
from .math import JS, KL, REVERSE_KL, divergence, exponentials, gradient, largest, only_classes, product, shares
from .other import columns_of, load_other


class Tensors(NamedTuple):
    """Tensors that a walk reads and writes; None for those that it does not."""

    input: Any  # [B, K, h, w], the own map
    other: Any  # Map
    target: Any = None  # [B, H, W]
    weight: Any = None
    grad_loss: Any = None  # [] or [B, H, W]
    loss: Any = None  # [B, H, W]
    grad: Any = None  # [B, K, h, w], or [parts, B, K, h, w] in the accumulator dtype
    state: Any = None  # 5, of "js" 6 times [B, H, W]: m, s, n, t, the sum that `gradient` needs, the other sum of "js"
    partials: Any = None  # [programs, 2]: loss, valid pixels


class Form(NamedTuple):
    """The family's constants, for which a walk is compiled."""

    PHASE: Any  # which epilogue
    KIND: Any  # index into op.KINDS
    BLEND_Y: Any  # whether rows of the other map are interpolated
    BLEND_X: Any
    INT: Any  # type that holds twice the cells times the labels of an axis of the other map


class Coefs(NamedTuple):
    """The gradient of a label pixel, [P]: dL/dz_k = scale v_k."""

    scale: Any
    b: Any


@triton.jit
def load_valid(io, params, pixels):
    if io.target is None:
        return pixels.inside
    else:
        label = load_pixels(io.target, params.target, pixels).to(tl.int64)
        return pixels.inside & (label != params.ignore_index)


@triton.jit
def load_both(io, z, ks, k0, pixels, columns, params, form, kind):
    """The logits of both maps, -inf if there is no such class."""
    count = params.classes - k0
    y = load_other(io.other, columns, pixels, k0, ks, count, form.BLEND_Y, form.BLEND_X, form.INT, kind.ACC)
    return only_classes(z, ks, count), only_classes(y, ks, count)


@triton.jit
def note(io, params, pixels, valid, value, totals):
    """Store the loss of a label row, and add it up."""
    value = tl.where(valid, params.gamma * params.gamma * value, 0.0)  # gamma: the temperature
    if io.loss is not None:
        tl.store(io.loss + pixels.n, value, mask=pixels.mine)
    value = tl.where(pixels.mine, value, 0.0)
    return totals[0] + value.to(tl.float64), totals[1] + (valid & pixels.mine).to(tl.int32)


@triton.jit
def coefs_of(io, params, pixels, valid, s, form, kind):
    scale = tl.zeros(s.shape, kind.ACC) + params.gamma
    if form.KIND == JS:
        scale *= 0.5
    else:
        scale /= s
    if io.grad_loss is not None:
        scale *= load_pixels(io.grad_loss, params.grad_loss, pixels).to(kind.ACC)
    scale = tl.where(valid, scale, 0.0)
    return Coefs(scale, scale)


@triton.jit
def whole_row(io, params, z, ks, pixels, columns, totals, form, kind):
    """Epilogue "whole": all classes are here."""
    valid = load_valid(io, params, pixels)
    z, y = load_both(io, z, ks, 0, pixels, columns, params, form, kind)
    low = tl.full(pixels.X.shape, float("-inf"), kind.ACC)
    first, second, s, t, total = exponentials(z, y, largest(z, low), largest(y, low), 1.0 / params.gamma, form.KIND)
    every = total
    if form.KIND == JS:
        first, second, total, rest = shares(first, second, s, t)
        every = total + rest
    totals = note(io, params, pixels, valid, divergence(s, t, every, form.KIND), totals)
    v = gradient(first, second, valid, s, t, total, form.KIND)
    return totals, v, coefs_of(io, params, pixels, valid, s, form, kind)


@triton.jit
def statistics_row(io, params, z, ks, k0, pixels, columns, totals, form, kind):
    """Epilogue "statistics": one chunk of classes, after which the state has those up to it."""
    z, y = load_both(io, z, ks, k0, pixels, columns, params, form, kind)
    n, mine, inverse = pixels.n, pixels.mine, 1.0 / params.gamma
    seen = tl.where(mine, k0, 0) > 0
    old_z = tl.load(io.state[0] + n, mask=seen, other=float("-inf"))
    old_s = tl.load(io.state[1] + n, mask=seen, other=0.0)
    old_y = tl.load(io.state[2] + n, mask=seen, other=float("-inf"))
    old_t = tl.load(io.state[3] + n, mask=seen, other=0.0)
    top_z, top_y = largest(z, old_z), largest(y, old_y)
    m_z, m_y = finite(top_z), finite(top_y)
    _, _, s, t, total = exponentials(z, y, m_z, m_y, inverse, form.KIND)
    shrink_s, shrink_t = exp((old_z - m_z) * inverse), exp((old_y - m_y) * inverse)
    s += old_s * shrink_s
    t += old_t * shrink_t
    # b - a of the classes before has grown by this
    moved = tl.where(seen, (m_z - finite(old_z)) - (m_y - finite(old_y)), 0.0) * inverse
    if form.KIND == KL:
        old = tl.load(io.state[4] + n, mask=seen, other=0.0)
        total += product(shrink_t, old + product(old_t, moved))
    if form.KIND == REVERSE_KL:
        old = tl.load(io.state[4] + n, mask=seen, other=0.0)
        total += product(shrink_s, old - product(old_s, moved))
    if k0 + kind.BK >= params.classes:
        s = tl.where(top_z == float("-inf"), float("nan"), s)
        t = tl.where(top_y == float("-inf"), float("nan"), t)
        if form.KIND != JS:
            valid = load_valid(io, params, pixels)
            totals = note(io, params, pixels, valid, divergence(s, t, total, form.KIND), totals)
    state = (top_z, s, top_y, t, total)
    for i in tl.static_range(4 if form.KIND == JS else 5):
        tl.store(io.state[i] + n, state[i], mask=mine)
    return totals, z, Coefs(s, s)


@triton.jit
def blocks_of_state(io, params, z, ks, k0, pixels, columns, form, kind):
    """(first, second, s, t) of a chunk of classes, as of `exponentials`."""
    z, y = load_both(io, z, ks, k0, pixels, columns, params, form, kind)
    n, inside = pixels.n, pixels.inside
    m_z = finite(tl.load(io.state[0] + n, mask=inside, other=0.0))
    m_y = finite(tl.load(io.state[2] + n, mask=inside, other=0.0))
    s = tl.load(io.state[1] + n, mask=inside, other=1.0)
    t = tl.load(io.state[3] + n, mask=inside, other=1.0)
    first, second, _, _, _ = exponentials(z, y, m_z, m_y, 1.0 / params.gamma, form.KIND)
    return first, second, s, t


@triton.jit
def divergence_row(io, params, z, ks, k0, pixels, columns, totals, form, kind):
    """Epilogue "divergence" of "js": the sums of u and v."""
    e, f, s, t = blocks_of_state(io, params, z, ks, k0, pixels, columns, form, kind)
    _, _, u_sum, v_sum = shares(e, f, s, t)
    n, mine = pixels.n, pixels.mine
    seen = tl.where(mine, k0, 0) > 0
    u_sum += tl.load(io.state[4] + n, mask=seen, other=0.0)
    v_sum += tl.load(io.state[5] + n, mask=seen, other=0.0)
    if k0 + kind.BK >= params.classes:
        valid = load_valid(io, params, pixels)
        totals = note(io, params, pixels, valid, divergence(s, t, u_sum + v_sum, form.KIND), totals)
    tl.store(io.state[4] + n, u_sum, mask=mine)
    tl.store(io.state[5] + n, v_sum, mask=mine)
    return totals, z, Coefs(s, s)


@triton.jit
def gradient_row(io, params, z, ks, k0, pixels, columns, totals, form, kind):
    """Epilogue "gradient": that of a chunk of classes, from the state."""
    first, second, s, t = blocks_of_state(io, params, z, ks, k0, pixels, columns, form, kind)
    valid = load_valid(io, params, pixels)
    total = tl.load(io.state[4] + pixels.n, mask=pixels.inside, other=0.0)
    if form.KIND == JS:
        first, second, _, _ = shares(first, second, s, t)
    v = gradient(first, second, valid, s, t, total, form.KIND)
    return totals, v, coefs_of(io, params, pixels, valid, s, form, kind)


@triton.jit
def row(io, params, z, ks, k0, pixels, columns, w_all, totals, form, kind):
    """One label row in the epilogue of the phase. -> (totals, v, Coefs)."""
    if form.PHASE == "whole":
        return whole_row(io, params, z, ks, pixels, columns, totals, form, kind)
    elif form.PHASE == "statistics":
        return statistics_row(io, params, z, ks, k0, pixels, columns, totals, form, kind)
    elif form.PHASE == "divergence":
        return divergence_row(io, params, z, ks, k0, pixels, columns, totals, form, kind)
    else:
        return gradient_row(io, params, z, ks, k0, pixels, columns, totals, form, kind)


@triton.jit
def begin(form, kind):
    """Per lane: loss, valid pixels."""
    return tl.zeros((kind.C * kind.R,), tl.float64), tl.zeros((kind.C * kind.R,), tl.int32)


@triton.jit
def load_columns(io, params, k0, ks, at, form, kind):
    return columns_of(io.other, at.X, form.INT, kind.ACC)


@triton.jit
def end(io, params, k0, totals, form, kind):
    if io.partials is not None:
        program = tl.program_id(0).to(tl.int64) + tl.program_id(2).to(tl.int64) * tl.num_programs(0)
        tl.store(io.partials + program * 2, tl.sum(totals[0]))
        tl.store(io.partials + program * 2 + 1, tl.sum(totals[1]).to(tl.float64))


EPILOGUE = Epilogue(begin, load_columns, row, end)


@triton.jit(do_not_specialize=["programs"])
def sum_partials(partials, programs: tl.int32, loss, divisor, ROWS: tl.constexpr):
    """partials [programs, 2] -> loss [], and if there is a divisor [], that and the loss over it."""
    column = tl.arange(0, 2)
    total, _ = add_rows(partials, programs, 2, column, column < 2, ROWS)
    value = total.to(loss.dtype.element_ty)
    if divisor is not None:
        count = tl.maximum(tl.sum(tl.where(column == 1, total, 0.0), 0), 1.0).to(loss.dtype.element_ty)
        tl.store(divisor, count)
        value = divide(value, count + tl.zeros_like(value))
    tl.store(loss + column, value, mask=column == 0)
