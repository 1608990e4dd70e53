"""The formulas of op.py's three forms on tiles: epilogues of pairwise/triton_tiles.py's walk.

`row` holds what a program knows of its BM rows: (groups, ids, (m, L) or terms, squared norms). `kind` is
the launch's (triton.py), `numbers` are the form's constants.
"""

import triton
import triton.language as tl

from ..core.triton_math import exp
from ..pairwise.triton_tiles import load_groups, load_ids, rounded, weigh

LOG2E = tl.constexpr(1.4426950408889634)


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
def wanted(fixed, kind):
    """Whether a launch of this kind is the one that the data ask for."""
    if fixed is None:
        return True
    else:
        return (tl.load(fixed) != 0) == kind.FIXED


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
def denominator(s, row, y, columns, kind, MASKED: tl.constexpr):
    """s where the pair is in the denominator: a negative, or, in "all", not self; else -inf."""
    if MASKED:
        positive, negative = pair_masks(row, y, columns, kind)
        s = tl.where(negative | positive if kind.NAME == "all" else negative, s, float("-inf"))
    return s


@triton.jit
def take_lse(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED: tl.constexpr):
    """(m, e) with e = sum exp((s - m) / t) over the denominator's pairs."""
    scale = in_base(numbers[0])
    m, exps = state
    s = denominator(s, row, y, columns, kind, MASKED)
    if kind.FIXED:
        exps += tl.sum(power_of_base(s * scale - (m * scale)[:, None]), 1)
    else:
        top = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(top == float("-inf"), 0.0, top)
        exps *= power_of_base((m - shift) * scale)
        exps += tl.sum(power_of_base((s - shift[:, None]) * scale), 1)
        m = top
    return m, exps


@triton.jit
def take_both_lse(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED: tl.constexpr):
    """e of the rows, with m = bound; e of the columns goes to row[2]'s sums [R], but for columns that are the rows."""
    scale = in_base(numbers[0])
    m, sums, block = row[2]
    s = denominator(s, row, y, columns, kind, MASKED)
    e = power_of_base(s * scale - (m * scale)[:, None])
    others = columns // tile.BM != block
    p_columns = sums + columns
    tl.store(p_columns, tl.load(p_columns, mask=others, other=0.0) + tl.sum(e, 0), mask=others)
    return (state[0] + tl.sum(e, 1),)


@triton.jit
def take_positives(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED: tl.constexpr):
    """(P, sum softplus(n - s), sum sigmoid(n - s)), in "all" (P, sum (n - s), 0)."""
    scale = numbers[0]
    count, total, sigmoids = state
    positive, _ = pair_masks(row, y, columns, kind)
    count += tl.sum(positive.to(count.dtype), 1)
    z = (row[2][0][:, None] - s) * scale + row[2][1][:, None]
    if kind.NAME == "all":
        total += tl.sum(tl.where(positive, z, 0.0), 1)
    else:
        # both are 0 at z = -inf
        z = tl.where(positive, z, float("-inf"))
        e = exp(-tl.abs(z))
        w = 1.0 + e
        r = 1.0 / w
        sigmoids += tl.sum(tl.where(z >= 0.0, r, e * r), 1)
        # log(1 + e), with what the rounding of w took from e
        total += tl.sum(tl.maximum(z, 0.0) + (tl.log(w) + (e - (w - 1.0)) * r), 1)
    return count, total, sigmoids


@triton.jit
def squared_distance(s, row, y, columns):
    """d^2 [BM, BN]; 0 where rounding alone could have made it."""
    # d^2 = |x|^2 + |y|^2 - 2 x.y
    squares = row[3][:, None] + tl.load(y.squares + columns)[None, :]
    d2 = squares - 2.0 * s
    EPS: tl.constexpr = 2.220446049250313e-16 if s.dtype == tl.float64 else 1.1920928955078125e-07
    return tl.where(d2 <= 8.0 * EPS * squares, 0.0, d2)


@triton.jit
def hinge(v, kind):
    """relu(v)^p; NaN stays."""
    r = tl.where(v < 0.0, 0.0, v)
    if kind.POWER == 2:
        return r * r
    else:
        return r


@triton.jit
def take_margin(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED: tl.constexpr):
    """(sum over positives, how many, sum over negatives, how many)."""
    margin, positive_margin = numbers
    pulls, pulled, pushes, pushed = state
    d = tl.sqrt(squared_distance(s, row, y, columns))
    push = hinge(margin - d, kind)
    if MASKED:
        positive, negative = pair_masks(row, y, columns, kind)
        pull = tl.where(positive, hinge(d - positive_margin, kind), 0.0)
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
        pushed += columns.shape[0]
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
def hinge_slope(v, inverse, kind):
    """p relu(v)^(p-1) / d, where v is in units of d."""
    if kind.POWER == 2:
        return 2.0 * tl.where(v < 0.0, 0.0, v)
    else:
        return tl.where(v > 0.0, inverse, 0.0)


@triton.jit
def margin_weights(s, row, y, columns, kind, numbers, MASKED: tl.constexpr):
    """As above, with a on positives and b on negatives; the gradient is sum_j W_ij (x_i - y_j)."""
    margin, positive_margin = numbers
    d2 = squared_distance(s, row, y, columns)
    inverse = tl.where(d2 == 0.0, 0.0, tl.rsqrt(d2))  # 1 / d; nothing moves rows at d = 0
    push = hinge_slope(margin * inverse - 1.0, inverse, kind)
    w = tl.zeros_like(s)
    if kind.BY_ROW:
        w -= row[2][1][:, None] * push
    if kind.BY_COLUMN:
        w -= load_terms(y, columns)[1][None, :] * push
    if MASKED:
        positive, negative = pair_masks(row, y, columns, kind)
        w = tl.where(negative, w, 0.0)
        pull = hinge_slope(1.0 - positive_margin * inverse, inverse, kind)
        pull = tl.where(positive & (inverse != 0.0), pull, 0.0)
        if kind.BY_ROW:
            w += row[2][0][:, None] * pull
        if kind.BY_COLUMN:
            w += load_terms(y, columns)[0][None, :] * pull
    return w


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
