"""The softmax of a label pixel on blocks of lanes, and its cross-entropy or focal loss.

A lane is a label pixel, [P]. Its classes come as a tuple of [k, P] blocks, so that their number need not be rounded up
to one power of two. ks holds their indices as [k, 1] blocks, counted from the first class k0 of a chunk. `label` and
`count`, the number of classes from k0 on, are counted likewise. Padding (index >= count) has the logit -inf.
Formulas: docs/kernels/focal.md.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ....core.triton_kernels import exp, log1p


class RowStats(NamedTuple):
    """Sums over the classes of a label pixel, each [P]."""

    row_max: Any
    others: Any  # sum of exp(z_k - row_max) over k != t
    target_logit: Any  # z_t
    gap: Any  # sum of w_k (row_max - z_k), with label smoothing


class Terms(NamedTuple):
    """The gradient of a label pixel, each [P]: dl/dz_k = a (q_k - [k = t]) + b (W q_k - w_k), W = sum_k w_k."""

    a: Any
    b: Any
    e_t: Any  # exp(z_t - row_max)
    s: Any  # sum of exp(z_k - row_max)


@triton.jit
def power(u, g, POWER: tl.constexpr):
    """u^g, u >= 0. POWER is g if that is 0, 1 or 2, else -1.

    An exponential and a logarithm per class take a third more instructions in "sigmoid" than the square does.
    """
    if POWER == 0:
        return tl.full(u.shape, 1.0, u.dtype)
    elif POWER == 1:
        return u
    elif POWER == 2:
        return u * u
    else:
        return tl.exp2(g * tl.log2(u))


@triton.jit
def power_slope(u, g, POWER: tl.constexpr):
    """g u^(g-1), u > 0."""
    if POWER == 1:
        return tl.full(u.shape, 1.0, u.dtype)
    elif POWER == 2:
        return 2.0 * u
    else:
        return g * tl.exp2((g - 1.0) * tl.log2(u))


@triton.jit
def below_normal(u):
    if u.dtype == tl.float64:
        return u < 2.2250738585072014e-308
    else:
        return u < 1.1754943508222875e-38


@triton.jit
def weight_block(weight, k0, k, count, ACC: tl.constexpr):
    """Class weights of a [k, 1] block, 0 in the padding."""
    if weight is None:
        return tl.where(k < count, 1.0, 0.0).to(ACC)
    else:
        return tl.load(weight + k0 + k, mask=k < count, other=0.0)


@triton.jit
def weight_sum(weight, count, KALL: tl.constexpr, ACC: tl.constexpr):
    """Sum of the first `count` class weights; KALL is a power of two that none of them exceeds."""
    if weight is None:
        return tl.cast(count, ACC)
    else:
        k = tl.arange(0, KALL)
        return tl.sum(tl.load(weight + k, mask=k < count, other=0.0))


@triton.jit
def finite(m):
    """The reference point of exponentials: m, but 0 if every logit is -inf."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def take_classes(z, ks, label, opaque, row_max, others, target_logit):
    """Add the classes of z to the first three of RowStats.

    -> (row_max, others, target_logit, blocks of exp(z_k - row_max) with 0 at the label). Before any class: -inf, 0,
    -inf. `opaque` is a 0 that the compiler can't see through: it makes the comparison with the label again, for one
    instruction. Without it the compiler packs the first one's predicates into registers and unpacks them, for three.
    """
    old = row_max
    masked = ()
    begin = 0
    for i in tl.static_range(len(ks)):
        here = tl.sum(tl.where(ks[i] == (label + opaque)[None, :], z[i], 0.0), 0)
        target_logit = tl.where((label >= begin) & (label < begin + z[i].shape[0]), here, target_logit)
        begin += z[i].shape[0]
        masked += (tl.where(ks[i] == label[None, :], float("-inf"), z[i]),)
        row_max = tl.maximum(row_max, tl.max(masked[i], 0))
    row_max = tl.maximum(row_max, target_logit)
    others *= exp(old - finite(row_max))
    exps = ()
    for i in tl.static_range(len(ks)):
        exps += (exp(masked[i] - finite(row_max)[None, :]),)
        others += tl.sum(exps[i], 0)
    return row_max, others, target_logit, exps


@triton.jit
def weighted_gap(z, k0, ks, weight, count, row_max):
    """sum_k w_k (row_max - z_k) over the classes of z."""
    total = tl.zeros(row_max.shape, row_max.dtype)
    for i in tl.static_range(len(ks)):
        gap = tl.where(ks[i] < count, row_max[None, :] - z[i], 0.0)
        total += tl.sum(weight_block(weight, k0, ks[i], count, row_max.dtype) * gap, 0)
    return total


@triton.jit
def softmax_terms(stats, w_t, w_all, params, POWER: tl.constexpr, SMOOTHED: tl.constexpr):
    """(-log p, loss, Terms) of the cross-entropy or focal loss of a pixel."""
    ACC: tl.constexpr = w_t.dtype
    e_t = exp(stats.target_logit - finite(stats.row_max))
    s = stats.others + e_t
    log_s = tl.where(stats.row_max == stats.target_logit, log1p(stats.others), tl.log(s))
    nll = (stats.row_max - stats.target_logit) + log_s
    # S = (1-e) w_t (-log p) + (e/K) sum_k w_k (-log q_k)
    ce = w_t * nll
    a = w_t
    b = tl.zeros(w_t.shape, ACC)
    if SMOOTHED:
        b += params.smoothing / tl.cast(params.classes, ACC)
        ce = (1.0 - params.smoothing) * ce + b * (stats.gap + w_all * log_s)
        a *= 1.0 - params.smoothing
    # a = u^g (1-e) w_t + g u^(g-1) p S,  b = u^g e / K
    f = tl.full(w_t.shape, 1.0, ACC)
    if POWER != 0:
        u = stats.others / s
        f = power(u, params.gamma, POWER)
        p = exp(-nll)
        slope = power_slope(u, params.gamma, POWER) * p * ce
        a = f * a + tl.where(below_normal(u) | (p == 0.0), 0.0, slope)  # the limits at p = 1 and 0
        b *= f
    return nll, f * ce, Terms(a, b, e_t, s)


@triton.jit
def subtract_weights(g, b, k0, ks, weight, count):
    """g_k - b w_k, block by block."""
    out = ()
    for i in tl.static_range(len(ks)):
        out += (g[i] - b[None, :] * weight_block(weight, k0, ks[i], count, b.dtype),)
    return out


@triton.jit
def weigh(exps, c, dot):
    """dot + sum_k e_k c_k."""
    for i in tl.static_range(len(exps)):
        dot += tl.sum(exps[i] * c[i], 0)
    return dot


@triton.jit
def softmax_grad(exps, c, ks, label, coefs):
    """v_k = e_k (c_k + shift), with shift and, at the label, v_t of coefs; blocks as c."""
    out = ()
    for i in tl.static_range(len(ks)):
        v = exps[i] * (c[i] + coefs.shift[None, :])
        out += (tl.where(ks[i] == label[None, :], coefs.at_target[None, :], v),)
    return out
