"""The formulas of op.py's three forms on tiles: epilogues of pairwise/triton_tiles.py's walk.

`row` holds what a program knows of its BM rows: (groups, ids, (m, L) or terms, squared norms). `kind` is
the launch's (triton.py), `numbers` are the form's constants.
"""

import triton
import triton.language as tl

from ..core.triton_math import exp, log1p
from ..pairwise.triton_tiles import load_groups, load_ids, rounded, weigh

LOG2E = tl.constexpr(1.4426950408889634)
SPREAD = tl.constexpr(60.0)  # of exponents, within which one bound serves all rows


@triton.jit
def in_base(v):
    """Exponents are of base 2 in fp32, of e in fp64."""
    if v.dtype == tl.float32:
        return v * LOG2E
    else:
        return v


@triton.jit
def power_of_base(t):
    if t.dtype == tl.float32:
        return tl.exp2(t)
    else:
        return tl.exp(t)


@triton.jit
def wanted(bound, scale, kind):
    """Whether a launch of this kind is the one that the data ask for."""
    if bound is None:
        return True
    else:
        return (2.0 * tl.load(bound) * scale <= SPREAD) == kind.FIXED


@triton.jit
def pair_masks(row, y, columns, kind):
    """(positive, negative) [BM, BN]; what they say of rows that take no part is not used."""
    group = load_groups(y, columns)[None, :]
    same = row[0][:, None] == group
    positive = same & (group >= 0)
    if kind.SELF:
        positive = positive & (row[1][:, None] != load_ids(y, columns)[None, :])
    return positive, (group >= 0) & (same == 0)


@triton.jit
def take_lse(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED: tl.constexpr):
    """(m, e, P, sum (m - s)) with e = sum exp((s - m) / t) over negatives, or, in "all", over all but self; there also
    the positives."""
    scale = in_base(numbers[0])
    m, exps, count, total = state
    if MASKED:
        positive, negative = pair_masks(row, y, columns, kind)
        kept = tl.where(negative | positive if kind.NAME == "all" else negative, s, float("-inf"))
    else:
        kept = s
    if kind.FIXED:
        exps += tl.sum(power_of_base(kept * scale - (m * scale)[:, None]), 1)
    else:
        top = tl.maximum(m, tl.max(kept, 1))
        shift = tl.where(top == float("-inf"), 0.0, top)
        total += tl.where(count > 0.0, count * (shift - m), 0.0)
        exps *= power_of_base((m - shift) * scale)
        exps += tl.sum(power_of_base((kept - shift[:, None]) * scale), 1)
        m = top
    if MASKED and kind.NAME == "all":
        count += tl.sum(positive.to(m.dtype), 1)
        total += tl.sum(tl.where(positive, m[:, None] - s, 0.0), 1)
    return m, exps, count, total


@triton.jit
def take_positives(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED: tl.constexpr):
    """(P, sum softplus(n - s), sum sigmoid(n - s))."""
    scale = numbers[0]
    count, total, sigmoids = state
    positive, _ = pair_masks(row, y, columns, kind)
    count += tl.sum(positive.to(count.dtype), 1)
    # both are 0 at z = -inf
    z = tl.where(positive, (row[2][0][:, None] - s) * scale + row[2][1][:, None], float("-inf"))
    e = exp(-tl.abs(z))
    sigmoids += tl.sum(tl.where(z >= 0.0, 1.0, e) / (1.0 + e), 1)
    total += tl.sum(tl.maximum(z, 0.0) + log1p(e), 1)
    return count, total, sigmoids


@triton.jit
def distance(s, row, y, columns):
    """(d [BM, BN], where rounding alone could have made it)."""
    # d^2 = |x|^2 + |y|^2 - 2 x.y
    squares = row[3][:, None] + tl.load(y.squares + columns)[None, :]
    d2 = squares - 2.0 * s
    EPS: tl.constexpr = 2.220446049250313e-16 if s.dtype == tl.float64 else 1.1920928955078125e-07
    near = d2 <= 8.0 * EPS * squares
    return tl.where(near, 0.0, tl.sqrt(tl.where(near, 1.0, d2))), near


@triton.jit
def hinge(v, kind):
    """(relu(v)^p, p relu(v)^(p-1)); NaN stays."""
    r = tl.where(v < 0.0, 0.0, v)
    if kind.POWER == 2:
        return r * r, 2.0 * r
    else:
        return r, tl.where(v > 0.0, 1.0, 0.0).to(v.dtype)


@triton.jit
def take_margin(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED: tl.constexpr):
    """(sum over positives, how many, sum over negatives, how many)."""
    margin, positive_margin = numbers
    pulls, pulled, pushes, pushed = state
    d, _ = distance(s, row, y, columns)
    push, _ = hinge(margin - d, kind)
    if MASKED:
        positive, negative = pair_masks(row, y, columns, kind)
        pull, _ = hinge(d - positive_margin, kind)
        pull = tl.where(positive, pull, 0.0)
        push = tl.where(negative, push, 0.0)
        pulls += tl.sum(pull, 1)
        if kind.NONZERO:
            positive = pull > 0.0
            negative = push > 0.0
        pulled += tl.sum(positive.to(s.dtype), 1)
        pushed += tl.sum(negative.to(s.dtype), 1)
    elif kind.NONZERO:
        pushed += tl.sum((push > 0.0).to(s.dtype), 1)
    else:
        pushed += tile.BN
    return pulls, pulled, pushes + tl.sum(push, 1), pushed


@triton.jit
def load_terms(side, r):
    """(m, b, a, L, b exp((bound - m) / t)) of rows r; (a, b, ...) for "margin"."""
    terms = ()
    for i in tl.static_range(5):
        terms += (tl.load(side.terms + i * side.padded + r),)
    return terms


@triton.jit
def as_rows(terms):
    return terms[0][:, None], terms[1][:, None], terms[2][:, None], terms[3][:, None], terms[4][:, None]


@triton.jit
def as_columns(terms):
    return terms[0][None, :], terms[1][None, :], terms[2][None, :], terms[3][None, :], terms[4][None, :]


@triton.jit
def contrast_weights(s, row, y, columns, kind, numbers, MASKED: tl.constexpr):
    """W_ij of the side that has terms, W_ij + W_ji where both have."""
    scale, bound = in_base(numbers[0]), numbers[1]
    sides = ()
    if kind.BY_ROW:
        sides += (as_rows(row[2]),)
    if kind.BY_COLUMN:
        sides += (as_columns(load_terms(y, columns)),)
    w = tl.zeros_like(s)
    for i in tl.static_range(len(sides)):
        m, b, _, _, u = sides[i]
        if kind.FIXED:
            w += u
        else:
            w += b * power_of_base((s - m) * scale)
    if kind.FIXED:
        # b exp((s - m) / t) = exp((s - bound) / t) u, u = b exp((bound - m) / t)
        w *= power_of_base(s * scale - bound * scale)
    if MASKED:
        positive, negative = pair_masks(row, y, columns, kind)
        w = tl.where(negative | positive if kind.NAME == "all" else negative, w, 0.0)
        for i in tl.static_range(len(sides)):
            m, _, a, log_sum, _ = sides[i]
            if kind.NAME == "all":
                w -= tl.where(positive, a, 0.0)
            else:
                # a sigmoid((m - s) / t + L)
                w -= tl.where(positive, a / (1.0 + power_of_base((s - m) * scale - in_base(log_sum))), 0.0)
    return w


@triton.jit
def margin_weights(s, row, y, columns, kind, numbers, MASKED: tl.constexpr):
    """As above, with a on positives and b on negatives; the gradient is sum_j W_ij (x_i - y_j)."""
    margin, positive_margin = numbers
    a, b = tl.zeros_like(s), tl.zeros_like(s)
    if kind.BY_ROW:
        a += row[2][0][:, None]
        b += row[2][1][:, None]
    if kind.BY_COLUMN:
        terms = load_terms(y, columns)
        a += terms[0][None, :]
        b += terms[1][None, :]
    d, near = distance(s, row, y, columns)
    inverse = tl.where(near, 0.0, 1.0 / tl.where(near, 1.0, d))
    _, slope = hinge(margin - d, kind)
    w = -b * slope
    if MASKED:
        positive, negative = pair_masks(row, y, columns, kind)
        _, slope = hinge(d - positive_margin, kind)
        w = tl.where(negative, w, 0.0) + tl.where(positive, a * slope, 0.0)
    return w * inverse


@triton.jit
def take_gradient(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED: tl.constexpr):
    """(sum_j W_ij, sum_j W_ij y_j); only "margin" needs the first."""
    total, sums = state
    if kind.NAME == "margin":
        w = rounded(margin_weights(s, row, y, columns, kind, numbers, MASKED), tile)
        total += tl.sum(w.to(total.dtype), 1)
    else:
        w = rounded(contrast_weights(s, row, y, columns, kind, numbers, MASKED), tile)
    return total, weigh(w, blocks, y, columns, sums, tile)
