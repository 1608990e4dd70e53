"""Kernels of O(R) beside the walk over tiles: terms of rows, their coefficients, and sums of shares of a gradient.

`kind` (`RowKind`) holds the functions of a form: formulas of contrast/forms.py on blocks of rows.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .sides import largest
from .tiles import Numbers


class RowKind(NamedTuple):
    """The compile-time side of a form in a launch."""

    BLOCK: Any  # rows at once
    STEPS: Any  # blocks of a program
    SYMMETRIC: Any  # whether an earlier phase visited each pair of a set with itself once
    FACTORS: Any  # whether terms have factors
    REDUCE: Any  # whether terms are summed
    SUMS: Any  # terms of a row
    FIELDS: Any  # statistics of a row
    FORM: Any  # compile-time constants of the form, a NamedTuple
    SCALING: Any = None  # of coefficients for float16: "measure" the largest W first, then "apply"
    LOAD: Any = None  # functions: see `RowForm`
    TERMS: Any = None
    COEFS: Any = None
    LARGEST: Any = None


class Terms(NamedTuple):
    """Arguments of `finish`."""

    last: Any  # [parts, n, R], sums of the last phase
    order: Any  # [rows]
    factors: Any  # [rows]
    terms: Any  # out [rows, SUMS] in the caller's order, or sums of the programs [programs, SUMS]
    counts: Any  # out [rows, SUMS]
    stats: Any  # out [rows, FIELDS]


class Backward(NamedTuple):
    """Arguments of `make_coefs`."""

    stats: Any  # [rows, FIELDS]
    grad_terms: Any
    order: Any
    factors: Any
    coefs: Any  # out [n, R]
    tops: Any  # [programs], the largest W of each


@triton.jit
def row_numbers(bounds, a, b, c):
    acc: tl.constexpr = bounds.dtype.element_ty
    return Numbers(tl.load(bounds), (tl.full((), a, acc), tl.full((), b, acc), tl.full((), c, acc)))


@triton.jit(do_not_specialize=["rows", "padded", "last_parts", "earlier_parts", "earlier_programs"])
def finish(io, earlier, rows, padded, last_parts, earlier_parts, earlier_programs, a: tl.float64, b: tl.float64,
           c: tl.float64, kind):  # fmt: skip
    """Statistics, terms and counts of the rows of up to STEPS blocks."""
    program = tl.program_id(0)
    numbers = row_numbers(earlier.bounds, a, b, c)
    totals = ()
    for _ in tl.static_range(kind.SUMS):
        totals += (tl.zeros((kind.BLOCK,), earlier.bounds.dtype.element_ty),)
    first = program * kind.STEPS * kind.BLOCK
    for begin in range(first, tl.minimum(first + kind.STEPS * kind.BLOCK, rows), kind.BLOCK):
        r = begin + tl.arange(0, kind.BLOCK)
        known = r < rows
        inside = tl.minimum(r, padded - 1)
        row = kind.LOAD(earlier, earlier_parts, earlier_programs, io.last, last_parts, inside, padded, numbers, kind)
        terms, counts = kind.TERMS(row, numbers)
        for i in tl.static_range(kind.FIELDS):
            tl.store(io.stats + r.to(tl.int64) * kind.FIELDS + i, row[i], mask=known)
        place = tl.load(io.order + r, mask=known, other=0) * kind.SUMS
        sums = ()
        for k in tl.static_range(kind.SUMS):
            term = terms[k]
            if kind.FACTORS:
                term *= tl.load(io.factors + r, mask=known, other=0.0)
            if not kind.REDUCE:
                tl.store(io.terms + place + k, term, mask=known)
            tl.store(io.counts + place + k, counts[k], mask=known)
            sums += (totals[k] + tl.where(known, term, 0.0),)
        totals = sums
    if kind.REDUCE:
        for k in tl.static_range(kind.SUMS):
            tl.store(io.terms + program * kind.SUMS + k, tl.sum(totals[k], 0))


@triton.jit(do_not_specialize=["rows", "padded", "s_row", "s_sum"])
def make_coefs(io, bounds, rows, padded, s_row, s_sum, a: tl.float64, b: tl.float64, c: tl.float64, kind):
    """Coefficients of BLOCK rows; 0 in the padding. The unit of W, in float16, is left in `bounds`."""
    program = tl.program_id(0)
    r = program * kind.BLOCK + tl.arange(0, kind.BLOCK)
    known = r < rows
    numbers = row_numbers(bounds, a, b, c)
    unit = tl.full((), 1.0, bounds.dtype.element_ty)
    if kind.SCALING == "apply":
        unit = 16384.0 / tl.maximum(largest(io.tops, tl.num_programs(0), 128), 1e-30)
        if program == 0:
            tl.store(bounds + 2, unit)
    fields = ()
    for i in tl.static_range(kind.FIELDS):
        fields += (tl.load(io.stats + r.to(tl.int64) * kind.FIELDS + i, mask=known, other=0.0),)
    place = tl.load(io.order + r, mask=known, other=0)
    grads = ()
    for k in tl.static_range(kind.SUMS):
        grad = tl.load(io.grad_terms + place * s_row + k * s_sum, mask=known, other=0.0).to(bounds.dtype.element_ty)
        if kind.FACTORS:
            grad *= tl.load(io.factors + r, mask=known, other=0.0)
        grads += (grad * unit,)
    coefs = kind.COEFS(fields, grads, numbers)
    if kind.SCALING == "measure":
        top = kind.LARGEST(fields, coefs, tl.load(bounds + 1))
        tl.store(io.tops + program, tl.max(tl.where(known, top, 0.0), 0))
    else:
        for i in tl.static_range(len(coefs)):
            tl.store(io.coefs + tl.cast(padded, tl.int64) * i + r, tl.where(known, coefs[i], 0.0), mask=r < padded)


@triton.jit(do_not_specialize=["rows", "depth", "parts", "s_row", "s_d"])
def add_shares(shares, out, rows, depth, parts, s_row: tl.int64, s_d: tl.int64, WIDTH: tl.constexpr,
               ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """out [rows, depth] = sum over parts of shares [parts, rows, WIDTH]."""
    r = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    d = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    mask = (r < rows) & (d < depth)
    total = tl.zeros((ROWS, BLOCK), shares.dtype.element_ty)
    for part in range(0, parts):
        p_rows = shares + (tl.cast(part, tl.int64) * rows + r) * WIDTH
        total += tl.load(p_rows + d, mask=mask, other=0.0)
    tl.store(out + r.to(tl.int64) * s_row + d.to(tl.int64) * s_d, total.to(out.dtype.element_ty), mask=mask)
