"""The formulas of the focal family on blocks of lanes, as csrc/focal/math.h has them for one pixel.

A lane is a label pixel, [P]. Its classes come as a tuple of [k, P] blocks, so that their number need not be rounded up
to one power of two; ks holds their indices as [k, 1] blocks. Padding (index >= classes) has the logit -inf.
"""

import triton
import triton.language as tl

from ..core.triton_math import exp, log1p


@triton.jit
def power(u, G: tl.constexpr):
    """u^G, u >= 0."""
    if G == 0:
        return tl.full(u.shape, 1.0, u.dtype)
    elif G == 1:
        return u
    elif G == 2:
        return u * u
    else:
        return tl.exp2(G * tl.log2(u))


@triton.jit
def below_normal(u):
    if u.dtype == tl.float64:
        return u < 2.2250738585072014e-308
    else:
        return u < 1.1754943508222875e-38


@triton.jit
def weight_block(weight, k, classes, ACC: tl.constexpr):
    """w_k of a [k, 1] block, 0 in the padding."""
    if weight is None:
        return tl.where(k < classes, 1.0, 0.0).to(ACC)
    else:
        return tl.load(weight + k, mask=k < classes, other=0.0)


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
    """The reference point of exponentials: m, but 0 where every logit is -inf."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def take_classes(z, ks, k0, label, opaque, m, rest, z_t):
    """Takes the classes of z, which begin at k0, into m = max z_k, rest = sum_{k != t} exp(z_k - m) and z_t.

    -> (m, rest, z_t, blocks of exp(z_k - m) with 0 at the label). Before any class: -inf, 0, -inf.
    `opaque` is a 0 that the compiler can't see through: it makes the comparison with the label again, for one
    instruction, where it would pack the first one's predicates into registers and unpack them, for three.
    """
    old = m
    others = ()
    for i in tl.static_range(len(ks)):
        here = tl.sum(tl.where(ks[i] == (label + opaque)[None, :], z[i], 0.0), 0)
        z_t = tl.where((label >= k0) & (label < k0 + z[i].shape[0]), here, z_t)
        k0 += z[i].shape[0]
        others += (tl.where(ks[i] == label[None, :], float("-inf"), z[i]),)
        m = tl.maximum(m, tl.max(others[i], 0))
    m = tl.maximum(m, z_t)
    rest *= exp(old - finite(m))
    exps = ()
    for i in tl.static_range(len(ks)):
        exps += (exp(others[i] - finite(m)[None, :]),)
        rest += tl.sum(exps[i], 0)
    return m, rest, z_t, exps


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
def weighted_gap(z, ks, weight, classes, m):
    """sum_k w_k (m - z_k) over the classes of z."""
    total = tl.zeros(m.shape, m.dtype)
    for i in tl.static_range(len(ks)):
        gap = tl.where(ks[i] < classes, m[None, :] - z[i], 0.0)
        total += tl.sum(weight_block(weight, ks[i], classes, m.dtype) * gap, 0)
    return total


@triton.jit
def softmax_pixel(m, rest, z_t, gap, w_t, w_all, classes, GAMMA: tl.constexpr, SMOOTHING: tl.constexpr):
    """(-log p, loss, scale, hit, b), the gradient in the form

    dl/dz_k = scale (k = t ? hit : exp(z_k - m)) - b w_k,  scale = (a + b W) / s,  hit = (b W e_t - a rest) / (a + b W)
    """
    e_t = exp(z_t - finite(m))
    s = rest + e_t
    log_s = tl.where(m == z_t, log1p(rest), tl.log(s))
    nll = (m - z_t) + log_s
    # S = (1-e) w_t (-log p) + (e/K) sum_k w_k (-log q_k)
    ce = w_t * nll
    smoothing_k = SMOOTHING / tl.cast(classes, m.dtype)
    if SMOOTHING > 0:
        ce = (1.0 - SMOOTHING) * ce + smoothing_k * (gap + w_all * log_s)
    # a = u^g (1-e) w_t + g u^(g-1) p S,  b = u^g e / K
    f = tl.full(m.shape, 1.0, m.dtype)
    a = (1.0 - SMOOTHING) * w_t
    if GAMMA > 0:
        u = rest / s
        f = power(u, GAMMA)
        slope = GAMMA * power(tl.where(below_normal(u), 1.0, u), GAMMA - 1.0) * exp(-nll) * ce
        a = f * a + tl.where(below_normal(u), 0.0, slope)
    b = f * smoothing_k
    scale = a / s
    hit = -rest
    if SMOOTHING > 0:
        both = a + b * w_all
        scale = both / s
        hit = tl.where(both == 0.0, 0.0, (b * w_all * e_t - a * rest) / tl.where(both == 0.0, 1.0, both))
    return nll, f * ce, scale, hit, b


@triton.jit
def softmax_gradient(exps, ks, label, weight, classes, scale, hit, b, SMOOTHING: tl.constexpr):
    """Blocks v and a factor c [P] with dl/dz_k = c v_k."""
    out = ()
    for i in tl.static_range(len(ks)):
        v = tl.where(ks[i] == label[None, :], hit[None, :], exps[i])
        if SMOOTHING > 0:
            v = scale[None, :] * v - b[None, :] * weight_block(weight, ks[i], classes, b.dtype)
        out += (v,)
    if SMOOTHING > 0:
        scale = tl.full(scale.shape, 1.0, scale.dtype)
    return out, scale


@triton.jit
def sigmoid_element(x, t, GAMMA: tl.constexpr, ALPHA: tl.constexpr):
    """(loss, dl/dx) of one logit and its target in [0, 1]."""
    # e = exp(-|x|); sigmoid of either sign without cancellation
    e = exp(-tl.abs(x))
    inv = 1.0 / (1.0 + e)
    s = tl.where(x >= 0, inv, e * inv)
    s_neg = tl.where(x >= 0, e * inv, inv)
    ce = tl.where(x >= 0, (1.0 - t) * x, -t * x) + log1p(e)
    v = s * (1.0 - t) + s_neg * t
    # dl/dx = alpha_t [ v^g (s - t) + g v^(g-1) ce (1 - 2t) s (1-s) ]
    f = power(v, GAMMA)
    grad = f * (s * (1.0 - t) - s_neg * t)
    if GAMMA > 0:
        slope = GAMMA * power(tl.where(below_normal(v), 1.0, v), GAMMA - 1.0) * ce * (1.0 - 2.0 * t) * s * s_neg
        grad += tl.where(below_normal(v), 0.0, slope)
    loss = f * ce
    if ALPHA >= 0:
        alpha_t = ALPHA * t + (1.0 - ALPHA) * (1.0 - t)
        loss *= alpha_t
        grad *= alpha_t
    return loss, grad
