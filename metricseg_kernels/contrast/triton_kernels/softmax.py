"""Device code of "negatives" and "all": an LSE over a row's denominator, then sums over its positives.

An LSE takes the pairs that its phase counts: negatives or all. `numbers.constants` are (1 / temperature, c, c /
temperature). If FIXED, exponentials are exp((s - bound) / t) for all rows. If WEIGHTED, a pair counts w_j times in the
sums of its row, and w_i times in those of its column. Derivation: docs/kernels/contrast.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...core.triton_kernels import divide, exp, in_base, power_of_base, precise_exp
from ...engines.row_pairs.triton_kernels.tiles import counted, load_weights, opposite_weights, pair_masks, sum_parts
from ..forms import LseStats


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
def add_exponentials(s, row_max, exps, weights, pairs):
    """`LseState` with a tile of products, -inf where a pair does not count; weights of the columns [1, BN]."""
    scale = in_base(pairs.numbers.constants[0])
    WEIGHTED: tl.constexpr = pairs.kind.WEIGHTED
    if pairs.kind.FIXED:
        e = power_of_base(s * scale - (row_max * scale)[:, None])
    else:
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
def add_lse(s, pairs, state):
    """`LseState` with the counted pairs of a tile."""
    if pairs.MASKED:
        s = tl.where(counted(pairs), s, float("-inf"))
    weights = load_weights(pairs.y, pairs.columns, pairs.kind.WEIGHTED)[None, :]
    return add_exponentials(s, state.row_max, state.exps, weights, pairs)


@triton.jit
def log_of_sum(exps):
    """log, -inf at 0."""
    return tl.where(exps == 0.0, float("-inf"), tl.log(tl.where(exps == 0.0, 1.0, exps)))


@triton.jit
def join_parts(p_parts, parts, FIELDS: tl.constexpr, padded, r, numbers):
    """(row_max, exps) of rows r over all parts [parts, FIELDS, R], from the two fields at `p_parts`."""
    scale = in_base(numbers.constants[0])
    row_max = tl.full(r.shape, float("-inf"), p_parts.dtype.element_ty)
    exps = tl.zeros_like(row_max)
    for begin in range(0, parts, 8):
        part = begin + tl.arange(0, 8)[:, None]
        p_rows = p_parts + (part * FIELDS).to(tl.int64) * padded + r[None, :]
        part_max = tl.load(p_rows, mask=part < parts, other=float("-inf"))
        part_exps = tl.load(p_rows + padded, mask=part < parts, other=0.0)
        risen = tl.maximum(row_max, tl.max(part_max, 0))
        shift = tl.where(risen == float("-inf"), 0.0, risen)
        added = tl.sum(part_exps * power_of_base((part_max - shift[None, :]) * scale), 0)
        exps = exps * power_of_base((row_max - shift) * scale) + added
        row_max = risen
    return tl.where(row_max == float("-inf"), 0.0, row_max), exps


@triton.jit
def load_lse(earlier, parts, programs, r, padded, numbers, kind):
    """`Lse` of rows r from the first phase."""
    symmetric = False
    if kind.SYMMETRIC:
        symmetric = tl.load(earlier.fixed) != 0
        parts = tl.where(symmetric, 0, parts)
    row_max, exps = join_parts(earlier.parts, parts, 2, padded, r, numbers)
    if kind.SYMMETRIC:
        ROWS: tl.constexpr = r.shape[0]
        CHUNK: tl.constexpr = 4096 // ROWS if ROWS >= 64 else 64
        total = tl.zeros_like(exps)
        for begin in range(0, tl.where(symmetric, programs, 0), CHUNK):
            program = begin + tl.arange(0, CHUNK)[:, None]
            p_sums = earlier.sums + program.to(tl.int64) * padded + r[None, :]
            total += tl.sum(tl.load(p_sums, mask=program < programs, other=0.0), 0)
        row_max = tl.where(symmetric, tl.load(earlier.bounds), row_max)
        exps = tl.where(symmetric, total, exps)
    return Lse(row_max, log_of_sum(exps))


@triton.jit
def load_softmax_stats(earlier, parts, programs, last, last_parts, r, padded, numbers, kind):
    """`LseStats` of rows r."""
    lse = load_lse(earlier, parts, programs, r, padded, numbers, kind)
    sums = PositiveSums(*sum_parts(last, last_parts, 3, padded, r))
    return LseStats(lse.row_max, lse.lse, sums.positives, sums.loss_sum, sums.sigmoid_sum)


@triton.jit
def softmax_terms(row, numbers):
    """c loss_sum / positives, and the positives."""
    loss = divide(numbers.constants[1] * row.loss_sum, tl.where(row.positives > 0.0, row.positives, 1.0))
    return (loss,), (row.positives,)


@triton.jit
def softmax_coefs(fields, grads, numbers, ALL: tl.constexpr):
    """`SharedCoefs` of rows; see `Negatives.coefs`."""
    row = LseStats(*fields)
    live = (row.positives > 0.0) & (row.lse != float("-inf"))
    step = grads[0] * numbers.constants[2]
    positive = tl.where(live, divide(step, tl.where(live, row.positives, 1.0)), 0.0)
    lse = tl.where(live, row.lse, 0.0)
    negative = tl.where(live, (step if ALL else positive * row.sigmoid_sum) * precise_exp(-lse), 0.0)
    row_max = tl.where(live, row.row_max, float("inf"))
    shifted = negative * precise_exp((numbers.bound - row_max) * numbers.constants[0])
    return SharedCoefs(row_max, negative, positive, lse, shifted)


@triton.jit
def negatives_coefs(fields, grads, numbers):
    return softmax_coefs(fields, grads, numbers, False)


@triton.jit
def all_coefs(fields, grads, numbers):
    return softmax_coefs(fields, grads, numbers, True)


@triton.jit
def largest_softmax_weight(fields, coefs, heaviest):
    """Bound of |W| of rows: w exp(s - row_max) <= exp(lse), and w <= min(sum of the positives' w, largest w)."""
    pull = tl.abs(coefs.positive) * tl.minimum(LseStats(*fields).positives, heaviest)
    return tl.maximum(tl.abs(coefs.negative) * precise_exp(coefs.lse), pull)


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
