"""Tiles of a walk: sizes and strides, class blocks, and the loads and stores of rows of cells and label pixels."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .axes import Axis


class Params(NamedTuple):
    """Run-time numbers of a walk. Strides are (b, k, y, x), 0 for a dimension that the tensor does not have."""

    gamma: Any
    smoothing: Any
    alpha: Any
    ignore_index: Any
    ignored_loss: Any  # of a loss map
    classes: Any
    rows: Axis
    cols: Axis
    input: Any  # strides
    target: Any
    grad_loss: Any
    grad: Any
    grad_part: Any  # stride of the parts of grad


class Kind(NamedTuple):
    """The constants that a walk is compiled for, whatever the family."""

    SPAN: Any  # classes of a program: "whole", all at once; "sweep", all, chunk by chunk; "chunk", one chunk
    SMOOTHED: Any  # whether there is label smoothing
    KS: Any  # sizes of the class blocks of a chunk
    BK: Any  # their sum
    KALL: Any  # a power of two, at least the number of classes
    C: Any  # cell intervals of a tile
    R: Any  # label columns of an interval
    BLEND_Y: Any  # whether rows are interpolated
    BLEND_X: Any  # whether columns are
    ACC: Any  # accumulator dtype


class Epilogue(NamedTuple):
    """The functions of a family, each with its tensors `io`, Params, its constants `form`, and Kind.

    `carry` is what a program sums up. `chunk` is what its rows need of the chunk of classes that begins at k0. The
    gradient of a label row is coefs.scale v_k - coefs.b w_k; without io.grad it is not read.
    """

    BEGIN: Any  # (form, kind) -> carry
    LOAD: Any  # (io, params, k0, ks, at, form, kind) -> chunk
    ROW: Any  # (io, params, z, ks, k0, pixels, chunk, w_all, carry, form, kind) -> (carry, v, coefs)
    END: Any  # (io, params, k0, carry, form, kind)


class Geometry(NamedTuple):
    """The tile of a program; [P] is one value per lane."""

    image: Any
    y_begin: Any  # first interval row
    y_cells: Any  # first row of cells
    y_end: Any
    left: Any  # [1, P] cell to the left
    right: Any  # [1, P] cell to the right
    fx: Any  # [1, P] share of the right cell
    X: Any  # [P] label column
    inside: Any  # [P] whether there is such a column
    y_counts: Any  # [P] first interval row whose loss counts here
    x_cell: Any  # [1, C] cell column
    my_cells: Any  # [1, C] whether its gradient is written here


class Pixels(NamedTuple):
    """One label row of a tile."""

    image: Any
    Y: Any
    X: Any  # [P]
    n: Any  # [P] index into [B, H, W]
    inside: Any  # [P]
    mine: Any  # [P] inside, and its loss counts here
    opaque: Any  # a 0 that the compiler can't see through


class Labels(NamedTuple):
    """Labels of one row, each [P]."""

    valid: Any
    bad: Any  # neither ignored nor in [0, K)
    label: Any  # int32; -1 if not valid
    raw: Any  # int64, as stored


@triton.jit
def zero_blocks(ks, C: tl.constexpr, ACC: tl.constexpr):
    """Zeros, one [k, C] block for each of ks."""
    zeros = ()
    for i in tl.static_range(len(ks)):
        zeros += (tl.zeros_like(ks[i]).to(ACC) + tl.zeros((1, C), ACC),)
    return zeros


@triton.jit
def multiply_add(c, x, y):
    """c x + y, block by block."""
    out = ()
    for i in tl.static_range(len(x)):
        out += (c * x[i] + y[i],)
    return out


@triton.jit
def fold_and_store(p_row, s_k, s_x, g, ks, count, at, C: tl.constexpr, R: tl.constexpr, SHIFT: tl.constexpr):
    """Sum a gradient row [k, C R] over the label columns of each interval onto its cells, and write those [k, C].

    dl/dz[x] = sum over interval x of (1 - f) g  +  sum over interval x - 1 of f g
    """
    for i in tl.static_range(len(ks)):
        cells = g[i]
        if SHIFT:
            here = tl.sum(tl.reshape((1.0 - at.fx) * g[i], (ks[i].shape[0], C, R)), 2)
            right = tl.sum(tl.reshape(at.fx * g[i], (ks[i].shape[0], C, R)), 2)
            before = tl.maximum(tl.arange(0, C) - 1, 0)[None, :] + tl.zeros_like(ks[i])
            cells = here + tl.gather(right, before, 1)
        p_cells = p_row + tl.cast(ks[i], tl.int64) * tl.cast(s_k, tl.int64) + at.x_cell * s_x
        mine = (ks[i] < count) & at.my_cells
        tl.store(tl.max_contiguous(p_cells, (1, 2)), cells.to(p_row.dtype.element_ty), mask=mine)


@triton.jit
def class_rows(data, strides, pixels, k0, k):
    """Pointers to classes k0 + k of a label row, [k, 1]."""
    # as in walk.py, no address per class is to stay in registers, here across label rows
    Y = tl.cast(pixels.Y, tl.int64)
    s_k = strides[1] + (Y < 0).to(tl.int32)
    row = data + pixels.image * strides[0] + tl.cast(k0, tl.int64) * s_k + Y * strides[2]
    return row + tl.cast(k, tl.int64) * s_k


@triton.jit
def load_pixels(data, strides, pixels):
    """One value per label pixel, [P]."""
    p_row = data + pixels.image * strides[0] + tl.cast(pixels.Y, tl.int64) * strides[2]
    return tl.load(p_row + pixels.X * strides[3], mask=pixels.inside, other=0)


@triton.jit
def load_labels(target, pixels, params, classes):
    raw = load_pixels(target, params.target, pixels).to(tl.int64)
    inside = pixels.inside & (raw != params.ignore_index)
    known = (raw >= 0) & (raw < classes)
    valid = inside & known
    return Labels(valid=valid, bad=inside & (known == 0), label=tl.where(valid, raw, -1).to(tl.int32), raw=raw)
