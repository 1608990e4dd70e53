"""Formulas of the three forms on tiles: epilogues of the walk in engines/row_pairs/triton_kernels.py.

`row` is a `Row`, `kind` the launch's `Kind` (triton.py), `numbers` are the form's constants: (1 / t, bound), or
(margin, positive_margin). `columns` [BN] are the rows of Y in a tile, s [BM, BN] the products. The formulas are derived
in docs/kernels/contrast.md.
"""

import triton
import triton.language as tl

from ...core.triton_kernels import exp, in_base, power_of_base
from ...engines.row_pairs.triton_kernels import add_product, pair_masks, rounded


@triton.jit
def wanted(fixed, kind):
    """Whether this launch is the one of two that fits the data."""
    if kind.TWIN:
        return (tl.load(fixed) != 0) == kind.FIXED
    else:
        return True


@triton.jit
def denominator(s, row, y, columns, kind, MASKED: tl.constexpr):
    """s of pairs in the denominator (negatives; in "all" all but self), else -inf."""
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
        row_max = tl.maximum(m, tl.max(s, 1))
        shift = tl.where(row_max == float("-inf"), 0.0, row_max)
        exps *= power_of_base((m - shift) * scale)
        exps += tl.sum(power_of_base((s - shift[:, None]) * scale), 1)
        m = row_max
    return m, exps


@triton.jit
def take_symmetric_lse(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED: tl.constexpr):
    """e of the rows, with m = bound. e of columns in other blocks is added to `sums` [R], the program's own."""
    scale = in_base(numbers[0])
    m, sums, block = row.coefs
    s = denominator(s, row, y, columns, kind, MASKED)
    e = power_of_base(s * scale - (m * scale)[:, None])
    tl.atomic_add(sums + columns, tl.sum(e, 0), mask=columns // tile.BM != block, sem="relaxed")
    return (state[0] + tl.sum(e, 1),)


@triton.jit
def add_three(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def add_four(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def take_positives(s, blocks, row, y, columns, state, kind, numbers, tile, MASKED: tl.constexpr):
    """(P, sum softplus(n - s), sum sigmoid(n - s)), in "all" (P, sum (n - s), 0)."""
    scale = numbers[0]
    row_max, lse = row.coefs
    positive, _ = pair_masks(row, y, columns, kind)
    z = (row_max[:, None] - s) * scale + lse[:, None]
    if kind.NAME == "all":
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
    sums = tl.reduce((positive.to(s.dtype), terms, sigmoids), 1, add_three)
    return state[0] + sums[0], state[1] + sums[1], state[2] + sums[2]


@triton.jit
def squared_distance(s, row, y, columns):
    """d^2 [BM, BN]; 0 if it may be rounding alone."""
    # d^2 = |x|^2 + |y|^2 - 2 x.y
    squares = row.squares[:, None] + tl.load(y.squares + columns)[None, :]
    d2 = squares - 2.0 * s
    EPS: tl.constexpr = 2.220446049250313e-16 if s.dtype == tl.float64 else 1.1920928955078125e-07
    return tl.where(d2 <= 8.0 * EPS * squares, 0.0, d2)


@triton.jit
def inverse_distance(d2):
    """1 / d [BM, BN]; 0 for d = 0, and for a subnormal d^2, which rsqrt flushes to 0 on the device."""
    NORMAL: tl.constexpr = 2.2250738585072014e-308 if d2.dtype == tl.float64 else 1.1754943508222875e-38
    return tl.where(d2 < NORMAL, 0.0, tl.rsqrt(d2))


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
    """(sum over positives, their number, sum over negatives, their number)."""
    margin, positive_margin = numbers
    d = tl.sqrt(squared_distance(s, row, y, columns))
    push = hinge(margin - d, kind)
    if MASKED:
        positive, negative = pair_masks(row, y, columns, kind)
        pull = tl.where(positive, hinge(d - positive_margin, kind), 0.0)
        push = tl.where(negative, push, 0.0)
        if kind.NONZERO:
            positive = pull > 0.0
            negative = push > 0.0
        sums = tl.reduce((pull, positive.to(s.dtype), push, negative.to(s.dtype)), 1, add_four)
        return state[0] + sums[0], state[1] + sums[1], state[2] + sums[2], state[3] + sums[3]
    else:
        count = columns.shape[0]
        if kind.NONZERO:
            count = tl.sum((push > 0.0).to(s.dtype), 1)
        return state[0], state[1], state[2] + tl.sum(push, 1), state[3] + count


@triton.jit
def load_coefs(side, r, kind):
    """Coefficients of rows r, each [k]: see `SharedCoefs` in triton.py and `MarginCoefs` in op.py."""
    c = side.coefs
    if kind.NAME == "margin":
        return tl.load(c.positive + r), tl.load(c.negative + r)
    else:
        return (tl.load(c.row_max + r), tl.load(c.negative + r), tl.load(c.positive + r), tl.load(c.lse + r),
                tl.load(c.shifted + r))  # fmt: skip


@triton.jit
def as_rows(coefs):
    """[k] each -> [k, 1]"""
    out = ()
    for i in tl.static_range(len(coefs)):
        out += (coefs[i][:, None],)
    return out


@triton.jit
def as_columns(coefs):
    """[k] each -> [1, k]"""
    out = ()
    for i in tl.static_range(len(coefs)):
        out += (coefs[i][None, :],)
    return out


@triton.jit
def sides_with_coefs(row, y, columns, kind):
    sides = ()
    if kind.BY_ROW:
        sides += (as_rows(row.coefs),)
    if kind.BY_COLUMN:
        sides += (as_columns(load_coefs(y, columns, kind)),)
    return sides


@triton.jit
def contrast_weights(s, row, y, columns, kind, numbers, MASKED: tl.constexpr):
    """W_ij of the side that has coefficients, W_ij + W_ji if both have."""
    scale, bound = in_base(numbers[0]), numbers[1]
    sides = sides_with_coefs(row, y, columns, kind)
    w = tl.zeros_like(s)
    for i in tl.static_range(len(sides)):
        row_max, negative_coef, _, _, shifted = sides[i]
        if kind.FIXED:
            w += shifted
        else:
            w += negative_coef * power_of_base((s - row_max) * scale)
    if kind.FIXED:
        # negative exp((s - row_max) / t) = exp((s - bound) / t) shifted
        w *= power_of_base(s * scale - bound * scale)
    if MASKED:
        positive, negative = pair_masks(row, y, columns, kind)
        w = tl.where(negative | positive if kind.NAME == "all" else negative, w, 0.0)
        for i in tl.static_range(len(sides)):
            row_max, _, positive_coef, lse, _ = sides[i]
            if kind.NAME == "all":
                w -= tl.where(positive, positive_coef, 0.0)
            else:
                # positive_coef sigmoid((row_max - s) / t + lse)
                inverse = 1.0 + power_of_base((s - row_max) * scale - in_base(lse))
                w -= tl.where(positive, positive_coef / inverse, 0.0)
    return w


@triton.jit
def hinge_slope(v, inverse, kind):
    """p relu(v)^(p-1) / d, v in units of d."""
    if kind.POWER == 2:
        return 2.0 * tl.where(v < 0.0, 0.0, v)
    else:
        return tl.where(v > 0.0, inverse, 0.0)


@triton.jit
def margin_weights(s, row, y, columns, kind, numbers, MASKED: tl.constexpr):
    """Weights of "margin", with a on positives and b on negatives; the gradient is sum_j W_ij (x_i - y_j)."""
    margin, positive_margin = numbers
    sides = sides_with_coefs(row, y, columns, kind)
    inverse = inverse_distance(squared_distance(s, row, y, columns))
    push = hinge_slope(margin * inverse - 1.0, inverse, kind)
    w = tl.zeros_like(s)
    for i in tl.static_range(len(sides)):
        _, b = sides[i]
        w -= b * push
    if MASKED:
        positive, negative = pair_masks(row, y, columns, kind)
        w = tl.where(negative, w, 0.0)
        pull = hinge_slope(1.0 - positive_margin * inverse, inverse, kind)
        pull = tl.where(positive & (inverse != 0.0), pull, 0.0)
        for i in tl.static_range(len(sides)):
            a, _ = sides[i]
            w += a * pull
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
    return total, add_product(w, blocks, y, columns, sums, tile)
