"""Device code of "nca": LSEs over negatives and over positives in one pass, and weights of their ratio."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...core.triton_kernels import in_base, log1p, power_of_base, precise_exp
from ...engines.row_pairs.triton_kernels.tiles import pair_masks
from ..forms import NcaCoefs, NcaStats
from .softmax import add_exponentials, join_parts, log_of_sum


class NcaState(NamedTuple):
    """Two `LseState`."""

    negative_max: Any
    negative_exps: Any
    positive_max: Any
    positive_exps: Any


@triton.jit
def start_nca(zero, numbers, kind):
    row_max = zero + (numbers.bound if kind.FIXED else float("-inf"))
    return NcaState(row_max, zero, row_max, zero)


@triton.jit
def add_nca(s, pairs, state):
    """`NcaState` with a tile."""
    weights = s
    if pairs.MASKED:
        positive, negative = pair_masks(pairs)
        masked = tl.where(negative, s, float("-inf"))
        push = add_exponentials(masked, state.negative_max, state.negative_exps, weights, pairs)
        masked = tl.where(positive, s, float("-inf"))
        pull = add_exponentials(masked, state.positive_max, state.positive_exps, weights, pairs)
        return NcaState(push.row_max, push.exps, pull.row_max, pull.exps)
    else:
        push = add_exponentials(s, state.negative_max, state.negative_exps, weights, pairs)
        return NcaState(push.row_max, push.exps, state.positive_max, state.positive_exps)


@triton.jit
def load_nca_stats(earlier, parts, programs, last, last_parts, r, padded, numbers, kind):
    """`NcaStats` of rows r."""
    negative_max, negative = join_parts(last, last_parts, 4, padded, r, numbers)
    positive_max, positive = join_parts(last + 2 * padded, last_parts, 4, padded, r, numbers)
    return NcaStats(negative_max, log_of_sum(negative), positive_max, log_of_sum(positive))


@triton.jit
def log_ratio(row, numbers):
    """(the difference of both LSEs, whether a row has both)."""
    live = (row.negative_lse != float("-inf")) & (row.positive_lse != float("-inf"))
    ratio = (row.negative_max - row.positive_max) * numbers.constants[0] + row.negative_lse - row.positive_lse
    return tl.where(live, ratio, 0.0), live


@triton.jit
def nca_terms(row, numbers):
    """softplus(log ratio), and whether there is a positive."""
    ratio, live = log_ratio(row, numbers)
    terms = tl.maximum(ratio, 0.0) + log1p(precise_exp(-tl.abs(ratio)))
    # maximum drops NaN
    terms = tl.where(ratio == ratio, terms, ratio)
    return (tl.where(live, terms, 0.0),), ((row.positive_lse != float("-inf")).to(ratio.dtype),)


@triton.jit
def nca_coefs(fields, grads, numbers):
    """`NcaCoefs` of rows; see `Nca.coefs`."""
    row = NcaStats(*fields)
    ratio, live = log_ratio(row, numbers)
    e = precise_exp(-tl.abs(ratio))
    sigmoid = tl.where(ratio >= 0.0, 1.0, e) / (1.0 + e)
    step = tl.where(live, grads[0] * sigmoid * numbers.constants[0], 0.0)
    return NcaCoefs(
        step,
        tl.where(live, row.negative_max, float("inf")),
        tl.where(live, row.negative_lse, 0.0),
        tl.where(live, row.positive_max, float("inf")),
        tl.where(live, row.positive_lse, 0.0),
    )


@triton.jit
def largest_nca_weight(fields, coefs, heaviest):
    """Bound of |W| of rows."""
    return tl.abs(coefs.step)


@triton.jit
def nca_weights(s, pairs, sides):
    """step softmax(s) over negatives, -step softmax(s) over positives."""
    scale = in_base(pairs.numbers.constants[0])
    w = tl.zeros_like(s)
    for i in tl.static_range(len(sides)):
        c = NcaCoefs(*sides[i])
        w += c.step * power_of_base((s - c.negative_max) * scale - in_base(c.negative_lse))
    if pairs.MASKED:
        positive, negative = pair_masks(pairs)
        w = tl.where(negative, w, 0.0)
        for i in tl.static_range(len(sides)):
            c = NcaCoefs(*sides[i])
            pull = c.step * power_of_base((s - c.positive_max) * scale - in_base(c.positive_lse))
            w -= tl.where(positive, pull, 0.0)
    return w
