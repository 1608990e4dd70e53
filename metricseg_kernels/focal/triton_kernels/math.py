"""Formulas of the focal family on blocks of lanes, as csrc/focal/math.h has them for one pixel.

Lanes and class blocks: see engines/resized/triton_kernels/softmax.py.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...core.triton_kernels import exp, log1p
from ...engines.resized.triton_kernels.softmax import below_normal, power, power_slope, softmax_terms


class RowCoefs(NamedTuple):
    """The gradient of a label pixel, each [P]:  dl/dz_k = scale (k = t ? at_target : exp(z_k - row_max)) - b w_k."""

    scale: Any
    at_target: Any
    b: Any


@triton.jit
def take_largest(z, k0, largest, best):
    """The argmax so far, of value `largest`; ties go to the lowest class, NaN ranks as the largest."""
    for i in tl.static_range(len(z)):
        ranked = tl.where(z[i] == z[i], z[i], float("inf"))
        top = tl.max(ranked, 0)
        best = tl.where(top > largest, k0 + tl.argmax(ranked, 0), best)
        largest = tl.maximum(largest, top)
        k0 += z[i].shape[0]
    return best


@triton.jit
def softmax_pixel(stats, w_t, w_all, params, POWER: tl.constexpr, SMOOTHED: tl.constexpr):
    """(-log p, loss, RowCoefs) with

    scale = (a + b W) / s,  at_target = (b W e_t - a others) / (a + b W)
    """
    nll, loss, terms = softmax_terms(stats, w_t, w_all, params, POWER, SMOOTHED)
    a, b, e_t, s = terms
    scale = a / s
    at_target = -stats.others
    if SMOOTHED:
        both = a + b * w_all
        scale = both / s
        at_target = tl.where(both == 0.0, 0.0, (b * w_all * e_t - a * stats.others) / tl.where(both == 0.0, 1.0, both))
    return nll, loss, RowCoefs(scale, at_target, b)


@triton.jit
def softmax_gradient(exps, ks, label, coefs):
    """Blocks v with dl/dz_k = scale v_k - b w_k."""
    out = ()
    for i in tl.static_range(len(ks)):
        out += (tl.where(ks[i] == label[None, :], coefs.at_target[None, :], exps[i]),)
    return out


@triton.jit
def sigmoid_of_label(x, positive, params, POWER: tl.constexpr, ALPHA: tl.constexpr):
    """(loss, dl/dx) of one logit whose target is 1 or 0."""
    # y = x (1 - 2t),  v = 1 - p_t = sigmoid(y)
    # l = alpha_t v^g softplus(y),  dl/dy = alpha_t v^g (v + g p_t softplus(y))
    y = tl.where(positive, -x, x)
    e = exp(-tl.abs(x))
    inv = 1.0 / (1.0 + e)
    v = tl.where(y >= 0, inv, e * inv)
    ce = tl.maximum(y, 0.0) + log1p(e)
    grad = v
    if POWER != 0:
        grad += params.gamma * tl.where(y >= 0, e * inv, inv) * ce
    f = power(v, params.gamma, POWER)
    if ALPHA:
        f *= tl.where(positive, params.alpha, 1.0 - params.alpha)
    return f * ce, f * tl.where(positive, -grad, grad)


@triton.jit
def sigmoid_of_target(x, t, params, POWER: tl.constexpr, ALPHA: tl.constexpr):
    """(loss, dl/dx) of one logit and its target in [0, 1]."""
    # e = exp(-|x|); sigmoid of either sign without cancellation
    e = exp(-tl.abs(x))
    inv = 1.0 / (1.0 + e)
    s = tl.where(x >= 0, inv, e * inv)
    s_neg = tl.where(x >= 0, e * inv, inv)
    off = tl.where(x >= 0, 1.0 - t, t)
    ce = tl.where(off == 0.0, 0.0, off * tl.abs(x)) + log1p(e)
    v = s * (1.0 - t) + s_neg * t
    # dl/dx = alpha_t [ v^g (s - t) + g v^(g-1) ce (1 - 2t) s (1-s) ]
    f = power(v, params.gamma, POWER)
    grad = f * (s * (1.0 - t) - s_neg * t)
    if POWER != 0:
        slope = power_slope(v, params.gamma, POWER) * ce * (1.0 - 2.0 * t) * s * s_neg
        grad += tl.where(below_normal(v), 0.0, slope)
    loss = f * ce
    if ALPHA:
        alpha_t = params.alpha * t + (1.0 - params.alpha) * (1.0 - t)
        loss *= alpha_t
        grad *= alpha_t
    return loss, grad
