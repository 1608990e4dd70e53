"""Logits of a map with cells of its own, interpolated to the label columns of a tile: four loads for each value.

A row of its cells serves several label rows, and a cell several label columns, out of L1 or L2.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ...core.triton_kernels import plain
from ...engines.resized.triton_kernels.axes import Axis, blend, load_row


class Map(NamedTuple):
    """Logits [B, K, h, w], read in place. All integers are disguised, see `plain`."""

    data: Any
    strides: Any  # (b, k, y, x)
    rows: Any  # Axis
    cols: Any


class Columns(NamedTuple):
    """Cells of label columns, each [1, P]."""

    left: Any
    right: Any
    fx: Any  # share of the right cell


@triton.jit
def plain_axis(axis, INT: tl.constexpr):
    return Axis(
        plain(axis.cells).to(INT), plain(axis.labels).to(INT), plain(axis.mul).to(INT), plain(axis.add).to(INT),
        plain(axis.den).to(INT),
    )  # fmt: skip


@triton.jit
def between(axis, label, ACC: tl.constexpr):
    """(cell, next cell, its share) of labels; the last cell is its own next one."""
    n = tl.maximum(label * axis.mul + axis.add, 0)
    cell = tl.minimum(n // axis.den, axis.cells - 1)
    share = (n - cell * axis.den).to(ACC) / axis.den.to(ACC)
    return cell, tl.minimum(cell + 1, axis.cells - 1), share


@triton.jit
def columns_of(map, X, INT: tl.constexpr, ACC: tl.constexpr):
    """The cells of label columns X [P]. Columns beyond the last get the cells of the last."""
    axis = plain_axis(map.cols, INT)
    left, right, fx = between(axis, tl.minimum(X.to(INT), axis.labels - 1), ACC)
    return Columns(left[None, :], right[None, :], fx[None, :])


@triton.jit
def load_other(map, columns, pixels, k0, ks, count, BLEND_Y: tl.constexpr, BLEND_X: tl.constexpr, INT: tl.constexpr,
               ACC: tl.constexpr):  # fmt: skip
    """Blocks [k, P] of a label row, from class k0 on; any number if there is no such class."""
    axis = plain_axis(map.rows, INT)
    # as in walk.py, no address per class is to stay in registers across label rows
    Y = tl.cast(pixels.Y, INT)
    opaque = (Y < 0).to(tl.int32)
    s_b, s_k, s_y, s_x = plain(map.strides[0]), plain(map.strides[1]), plain(map.strides[2]), plain(map.strides[3])
    s_k += opaque
    p_image = map.data + pixels.image * s_b + tl.cast(k0, tl.int64) * s_k
    above, below, fy = between(axis, Y, ACC)
    top = load_row(p_image + (above.to(tl.int64) * s_y + opaque), s_k, s_x, ks, count, columns, BLEND_X, 0.0, ACC)
    if BLEND_Y:
        p_below = p_image + (below.to(tl.int64) * s_y + opaque)
        bottom = load_row(p_below, s_k, s_x, ks, count, columns, BLEND_X, 0.0, ACC)
        return blend(top, bottom, tl.where(above < below, fy, 0.5).to(ACC))
    else:
        return top
