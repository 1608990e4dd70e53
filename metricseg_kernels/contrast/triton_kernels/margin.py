"""Device code of "margin": epilogues on squared distances. Derivation: docs/kernels/contrast.md."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...engines.row_pairs.triton_kernels.tiles import pair_masks, sum_parts
from ..forms import MarginCoefs, MarginStats


class Constants(NamedTuple):
    """Compile-time constants."""

    POWER: Any
    NONZERO: Any  # whether only terms above 0 count


@triton.jit
def start_margin(zero, numbers, kind):
    return MarginStats(zero, zero, zero, zero)


@triton.jit
def add_four(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def squared_distance(s, pairs):
    """d^2 [BM, BN]; 0 if it may be rounding alone."""
    # d^2 = |x|^2 + |y|^2 - 2 x.y
    squares = pairs.row.squares[:, None] + tl.load(pairs.y.squares + pairs.columns)[None, :]
    d2 = squares - 2.0 * s
    EPS: tl.constexpr = 2.220446049250313e-16 if s.dtype == tl.float64 else 1.1920928955078125e-07
    return tl.where(d2 <= 8.0 * EPS * squares, 0.0, d2)


@triton.jit
def inverse_distance(d2):
    """1 / d [BM, BN]; 0 for d = 0, and for a subnormal d^2, which rsqrt flushes to 0 on the device."""
    NORMAL: tl.constexpr = 2.2250738585072014e-308 if d2.dtype == tl.float64 else 1.1754943508222875e-38
    return tl.where(d2 < NORMAL, 0.0, tl.rsqrt(d2))


@triton.jit
def hinge(v, pairs):
    """relu(v)^p; NaN stays."""
    r = tl.where(v < 0.0, 0.0, v)
    if pairs.kind.FORM.POWER == 2:
        return r * r
    else:
        return r


@triton.jit
def add_margin(s, pairs, state):
    """`MarginStats` of a tile."""
    margin, positive_margin, _ = pairs.numbers.constants
    d = tl.sqrt(squared_distance(s, pairs))
    push = hinge(margin - d, pairs)
    NONZERO: tl.constexpr = pairs.kind.FORM.NONZERO
    if pairs.MASKED:
        positive, negative = pair_masks(pairs)
        pull = tl.where(positive, hinge(d - positive_margin, pairs), 0.0)
        push = tl.where(negative, push, 0.0)
        if NONZERO:
            positive = pull > 0.0
            negative = push > 0.0
        tile = MarginStats(*tl.reduce((pull, positive.to(s.dtype), push, negative.to(s.dtype)), 1, add_four))
        return MarginStats(state.pull + tile.pull, state.pulled + tile.pulled, state.push + tile.push,
                          state.pushed + tile.pushed)  # fmt: skip
    else:
        count = s.shape[1]
        if NONZERO:
            count = tl.sum((push > 0.0).to(s.dtype), 1)
        return MarginStats(state.pull, state.pulled, state.push + tl.sum(push, 1), state.pushed + count)


@triton.jit
def hinge_slope(v, inverse, pairs):
    """p relu(v)^(p-1) / d, v in units of d."""
    if pairs.kind.FORM.POWER == 2:
        return 2.0 * tl.where(v < 0.0, 0.0, v)
    else:
        return tl.where(v > 0.0, inverse, 0.0)


@triton.jit
def margin_weights(s, pairs, sides):
    """W [BM, BN]; the gradient is sum_j W_ij (x_i - y_j)."""
    margin, positive_margin, _ = pairs.numbers.constants
    inverse = inverse_distance(squared_distance(s, pairs))
    push = hinge_slope(margin * inverse - 1.0, inverse, pairs)
    w = tl.zeros_like(s)
    for i in tl.static_range(len(sides)):
        w -= MarginCoefs(*sides[i]).negative * push
    if pairs.MASKED:
        positive, negative = pair_masks(pairs)
        w = tl.where(negative, w, 0.0)
        pull = hinge_slope(1.0 - positive_margin * inverse, inverse, pairs)
        pull = tl.where(positive & (inverse != 0.0), pull, 0.0)
        for i in tl.static_range(len(sides)):
            w += MarginCoefs(*sides[i]).positive * pull
    return w


@triton.jit
def load_margin_stats(earlier, parts, programs, last, last_parts, r, padded, numbers, kind):
    """`MarginStats` of rows r."""
    return MarginStats(*sum_parts(last, last_parts, 4, padded, r))


@triton.jit
def margin_terms(row, numbers):
    return (row.pull, row.push), (row.pulled, row.pushed)


@triton.jit
def margin_coefs(fields, grads, numbers):
    return MarginCoefs(grads[0], grads[1])


@triton.jit
def largest_margin_weight(fields, coefs, heaviest):
    """Unused: rows are kept in fp32, see `make_config`."""
    return tl.maximum(tl.abs(coefs.positive), tl.abs(coefs.negative))
