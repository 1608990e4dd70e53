"""Bilinear resizing in Triton: coordinates of an axis, and rows of cells on their way to label columns.

A tile has lanes along label columns and blocks of classes: [k, P]. A thread holds the classes of its lane.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Axis(NamedTuple):
    """Label d lies at cell coordinate (mul d + add) / den, as in csrc/common/resize.h.

    If all labels of an axis lie on cell 0, den is larger than any of their numerators.
    """

    cells: Any
    labels: Any
    mul: Any
    add: Any
    den: Any


@triton.jit
def first_label(axis, cell):
    """The first label whose interval is >= cell, exact: csrc/common/resize.h with intervals from -1."""
    n = tl.cast(cell, tl.int64) * axis.den - axis.add
    return tl.minimum(tl.where(n <= 0, 0, (n + axis.mul - 1) // axis.mul), axis.labels)


@triton.jit
def fraction(axis, label, cell, ACC: tl.constexpr):
    """Share of the lower or right neighbor: 1 before the first cell's center, 0 beyond the last's."""
    n = tl.cast(label, tl.int64) * axis.mul + axis.add - tl.cast(cell, tl.int64) * axis.den
    f = n.to(ACC) / tl.cast(axis.den, ACC)
    return tl.where(cell < 0, 1.0, tl.where(cell >= axis.cells - 1, 0.0, f)).to(ACC)


@triton.jit
def class_blocks(KS):
    """Indices of the classes of a chunk, counted from its first, one [k, 1] block for each size in KS.

    They are constants: with the chunk's first class added, each would take a register.
    """
    ks = ()
    begin = 0
    for i in tl.static_range(len(KS)):
        ks += ((tl.arange(0, KS[i]) + begin)[:, None],)
        begin += KS[i]
    return ks


@triton.jit
def load_row(row, s_k, s_x, ks, count, at, BLEND: tl.constexpr, PADDING: tl.constexpr, ACC: tl.constexpr):
    """A row of cells interpolated to the tile's label columns, [k, P] blocks; PADDING if there is no such class.

    The hint of contiguity makes every compiler lay threads along the lanes, whatever the strides. It does not merge
    accesses, since no address has a known alignment. It has no effect on an argument of a function.
    """
    out = ()
    share = tl.where(at.left == at.right, 0.5, at.fx).to(ACC)  # beyond the last cell 0 would make NaN of an infinity
    for i in tl.static_range(len(ks)):
        known = ks[i] < count
        p_class = row + tl.cast(ks[i], tl.int64) * tl.cast(s_k, tl.int64)
        z = tl.load(tl.max_contiguous(p_class + at.left * s_x, (1, 2)), mask=known, other=0.0).to(ACC)
        if BLEND:
            p_right = tl.max_contiguous(p_class + at.right * s_x, (1, 2))
            z_right = tl.load(p_right, mask=known, other=0.0).to(ACC)
            z = (1.0 - share) * z + share * z_right
        out += (tl.where(known, z, PADDING),)
    return out


@triton.jit
def blend(top, bottom, f):
    """(1 - f) top + f bottom, block by block."""
    out = ()
    for i in tl.static_range(len(top)):
        out += ((1.0 - f) * top[i] + f * bottom[i],)
    return out
