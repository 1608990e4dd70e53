"""Divergence of the softmaxes of two maps at label pixels, [P], whose classes come as blocks [k, P].

With T the temperature: a = (z - m) / T, e = exp(a), s = sum e of the own map, m its largest logit; b, f, t and n of the
other one. Formulas: docs/kernels/distill.md.
"""

import triton
import triton.language as tl

from ...core.triton_kernels import exp, log1p

KL: tl.constexpr = tl.constexpr(0)  # as op.KINDS
REVERSE_KL: tl.constexpr = tl.constexpr(1)
JS: tl.constexpr = tl.constexpr(2)


@triton.jit
def product(probability, difference):
    """0 log 0 = 0"""
    return tl.where(probability == 0.0, 0.0, probability * difference)


@triton.jit
def only_classes(z, ks, count):
    """The logits, -inf if there is no such class."""
    out = ()
    for i in tl.static_range(len(ks)):
        out += (tl.where(ks[i] < count, z[i], float("-inf")),)
    return out


@triton.jit
def largest(z, top):
    for i in tl.static_range(len(z)):
        top = tl.maximum(top, tl.max(z[i], 0))
    return top


@triton.jit
def exponentials(z, y, m, n, inverse, KIND: tl.constexpr):
    """(blocks e; blocks f, or a - b for "reverse_kl"; s, t, and the sum of f (b - a) or e (a - b)) of these classes."""
    s = tl.zeros(m.shape, m.dtype)
    t, total = s, s
    e, second = (), ()
    for i in tl.static_range(len(z)):
        a, b = (z[i] - m[None, :]) * inverse, (y[i] - n[None, :]) * inverse
        e_i, f_i = exp(a), exp(b)
        s += tl.sum(e_i, 0)
        t += tl.sum(f_i, 0)
        if KIND == KL:
            total += tl.sum(product(f_i, b - a), 0)
        if KIND == REVERSE_KL:
            total += tl.sum(product(e_i, a - b), 0)
            f_i = a - b
        e += (e_i,)
        second += (f_i,)
    return e, second, s, t, total


@triton.jit
def log_of_ratio(gap, ratio):
    """log(ratio), ratio = 1 + gap in [0, 2], with more digits of it where gap is near -1."""
    far = gap < -0.5
    return tl.where(far, tl.log(ratio), log1p(tl.where(far, 0.0, gap)))


@triton.jit
def shares(e, f, s, t):
    """("js": blocks u = p log(p / m), blocks p, sum of u, sum of q log(q / m)), m = (p + q) / 2."""
    of_s, of_t = (1.0 / s)[None, :], (1.0 / t)[None, :]
    u_sum = tl.zeros(s.shape, s.dtype)
    v_sum = u_sum
    u, of_own = (), ()
    for i in tl.static_range(len(e)):
        p, q = e[i] * of_s, f[i] * of_t
        both = p + q
        gap = (p - q) / both
        u_i = product(p, log_of_ratio(gap, (p + p) / both))
        u_sum += tl.sum(u_i, 0)
        v_sum += tl.sum(product(q, log_of_ratio(-gap, (q + q) / both)), 0)
        u += (u_i,)
        of_own += (p,)
    return u, of_own, u_sum, v_sum


@triton.jit
def divergence(s, t, total, KIND: tl.constexpr):
    """`total`: see `exponentials`; of "js" the sum of u and v."""
    if KIND == KL:
        return total / t + (tl.log(s) - tl.log(t))
    elif KIND == REVERSE_KL:
        return total / s + (tl.log(t) - tl.log(s))
    else:
        return 0.5 * total


@triton.jit
def gradient(first, second, valid, s, t, total, KIND: tl.constexpr):
    """Blocks of the gradient over its factor T / s, T / 2 of "js"; 0 if the pixel takes no part.

    first, second: blocks e and f, e and a - b, or u and p; total: the sum of e (a - b), or of u.
    """
    ratio, mean = (s / t)[None, :], (total / s)[None, :]
    out = ()
    for i in tl.static_range(len(first)):
        if KIND == KL:
            v = first[i] - ratio * second[i]
        elif KIND == REVERSE_KL:
            v = product(first[i], second[i] - mean)
        else:
            v = first[i] - second[i] * total[None, :]
        out += (tl.where(valid[None, :], v, 0.0),)
    return out
