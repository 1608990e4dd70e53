"""Formulas on blocks that several families' Triton kernels share."""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LOG2E_REST = tl.constexpr(1.925963033500501e-08)  # that fp32 leaves of it


@triton.jit
def plain(number):
    """An integer that the host sent as 4 n + 2, see `disguised` in triton.py."""
    return number.to(tl.int64) >> 2


@triton.jit
def exp(x):
    """e^x; in fp32 by the one instruction that flushes subnormal results to 0."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        return tl.exp2(1.4426950408889634 * x)


@triton.jit
def precise_exp(x):
    """e^x; in fp32 without the error of the rounded product x log2(e), which grows with x."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        t = x * LOG2E
        rest = tl.fma(x, LOG2E, -t) + x * LOG2E_REST
        return tl.exp2(t) * (1.0 + tl.where(tl.abs(t) < 256.0, rest * 0.6931471805599453, 0.0))


@triton.jit
def log1p(x):
    """log(1 + x) with full relative accuracy: the rounding of w = 1 + x is undone by the factor x / (w - 1)."""
    w = 1.0 + x
    d = w - 1.0
    return tl.where(d == 0.0, x, tl.log(w) * (x / tl.where(d == 0.0, 1.0, d)))


@triton.jit
def divide(a, b):
    """a / b, rounded to nearest; Triton's own division of fp32 is not."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def root(a):
    """The square root, rounded to nearest."""
    if a.dtype == tl.float64:
        return tl.sqrt(a)
    else:
        return tl.sqrt_rn(a)


@triton.jit
def round_to_tf32(x):
    """Round to nearest, which tensor cores would otherwise truncate; infinities stay."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x0FFF + ((bits >> 13) & 1)) & -8192
    return tl.where((bits & 0x7F800000) == 0x7F800000, x, rounded.to(tl.float32, bitcast=True))


@triton.jit
def in_base(v):
    """v as an exponent of base 2 in fp32, of e in fp64."""
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
