"""Device code of "negatives" and "all": an LSE over a row's denominator, then sums over its positives.

An LSE takes the pairs that its phase counts: negatives, positives or both. `numbers.constants` are (1 / temperature, -,
-). If FIXED, exponentials are exp((s - bound) / t) for all rows. If WEIGHTED, a pair counts w_j times in the sums of
its row, and w_i times in those of its column. Derivation: docs/kernels/contrast.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...core.triton_kernels import exp, in_base, power_of_base
from ...engines.row_pairs.triton_kernels.tiles import counted, load_weights, opposite_weights, pair_masks


class Constants(NamedTuple):
    """Compile-time constants."""

    ALL: Any  # whether the denominator holds the positives too


class LseState(NamedTuple):
    """exps = sum w exp((s - row_max) / t)."""

    row_max: Any
    exps: Any


class Lse(NamedTuple):
    """log sum w exp(s / t) = row_max / t + lse."""

    row_max: Any
    lse: Any


class PositiveSums(NamedTuple):
    """Sums over the positives of a row, see `LseStats`."""

    positives: Any
    loss_sum: Any
    sigmoid_sum: Any


class SharedCoefs(NamedTuple):
    """Coefficients of a row, see `LseCoefs`; and shifted = negative exp((bound - row_max) / t), for one bound."""

    row_max: Any
    negative: Any
    positive: Any
    lse: Any
    shifted: Any


@triton.jit
def start_lse(zero, numbers, kind):
    return LseState(zero + (numbers.bound if kind.FIXED else float("-inf")), zero)


@triton.jit
def exponentials(s, pairs, row_max):
    """exp((s - row_max) / t) [BM, BN] of the counted pairs, else 0."""
    scale = in_base(pairs.numbers.constants[0])
    if pairs.MASKED:
        s = tl.where(counted(pairs), s, float("-inf"))
    return power_of_base(s * scale - (row_max * scale)[:, None])


@triton.jit
def bound_of_live(live, numbers):
    """The one row_max; +inf for rows that take no part, whose exponentials are 0 then."""
    return tl.where(live, numbers.bound, float("inf"))


@triton.jit
def add_lse(s, pairs, state):
    """`LseState` with the counted pairs of a tile."""
    row_max, exps = state
    WEIGHTED: tl.constexpr = pairs.kind.WEIGHTED
    weights = load_weights(pairs.y, pairs.columns, WEIGHTED)[None, :]
    if pairs.kind.FIXED:
        e = exponentials(s, pairs, row_max)
    else:
        scale = in_base(pairs.numbers.constants[0])
        if pairs.MASKED:
            s = tl.where(counted(pairs), s, float("-inf"))
        if WEIGHTED:
            s = tl.where(weights > 0.0, s, float("-inf"))
        risen = tl.maximum(row_max, tl.max(s, 1))
        shift = tl.where(risen == float("-inf"), 0.0, risen)
        exps *= power_of_base((row_max - shift) * scale)
        e = power_of_base((s - shift[:, None]) * scale)
        row_max = risen
    if WEIGHTED:
        e *= weights
    return LseState(row_max, exps + tl.sum(e, 1))


@triton.jit
def start_positives(zero, numbers, kind):
    return PositiveSums(zero, zero, zero)


@triton.jit
def add_three(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def add_positives(s, pairs, state):
    """`PositiveSums` of a tile."""
    row = Lse(*pairs.row.coefs)
    positive, _ = pair_masks(pairs)
    WEIGHTED: tl.constexpr = pairs.kind.WEIGHTED
    weights = load_weights(pairs.y, pairs.columns, WEIGHTED)[None, :]
    if WEIGHTED:
        positive = positive & (weights > 0.0)
    z = (row.row_max[:, None] - s) * pairs.numbers.constants[0] + row.lse[:, None]
    if pairs.kind.FORM.ALL:
        terms = tl.where(positive, z, 0.0)
        sigmoids = tl.zeros_like(z)
    else:
        # both are 0 at z = -inf
        z = tl.where(positive, z, float("-inf"))
        e = exp(-tl.abs(z))
        w = 1.0 + e
        r = 1.0 / w
        sigmoids = tl.where(z >= 0.0, r, e * r)
        # log(1 + e), corrected for the rounding of w
        terms = tl.maximum(z, 0.0) + (tl.log(w) + (e - (w - 1.0)) * r)
    counts = positive.to(s.dtype)
    if WEIGHTED:
        counts *= weights
        terms *= weights
        sigmoids *= weights
    tile = tl.reduce((counts, terms, sigmoids), 1, add_three)
    return PositiveSums(state.positives + tile[0], state.loss_sum + tile[1], state.sigmoid_sum + tile[2])


@triton.jit
def softmax_weights(s, pairs, sides):
    """W [BM, BN] of the sides that have coefficients."""
    scale, bound = in_base(pairs.numbers.constants[0]), pairs.numbers.bound
    ALL: tl.constexpr = pairs.kind.FORM.ALL
    WEIGHTED: tl.constexpr = pairs.kind.WEIGHTED
    weights = ()
    if WEIGHTED:
        weights = opposite_weights(pairs)
    w = tl.zeros_like(s)
    for i in tl.static_range(len(sides)):
        c = SharedCoefs(*sides[i])
        if pairs.kind.FIXED:
            share = c.shifted
        else:
            x = (s - c.row_max) * scale
            if WEIGHTED:
                x = tl.where(x > 0.0, 0.0, x)  # a column of weight 0 may be above the maximum
            share = c.negative * power_of_base(x)
        if WEIGHTED:
            share *= weights[i]
        w += share
    if pairs.kind.FIXED:
        # negative exp((s - row_max) / t) = exp((s - bound) / t) shifted
        w *= power_of_base(s * scale - bound * scale)
    if pairs.MASKED:
        positive, negative = pair_masks(pairs)
        w = tl.where(negative | positive if ALL else negative, w, 0.0)
        for i in tl.static_range(len(sides)):
            c = SharedCoefs(*sides[i])
            pull = c.positive
            if WEIGHTED:
                pull *= weights[i]
            if not ALL:
                # positive sigmoid((row_max - s) / t + lse)
                inverse = 1.0 + power_of_base((s - c.row_max) * scale - in_base(c.lse))
                pull /= inverse
            w -= tl.where(positive, pull, 0.0)
    return w
