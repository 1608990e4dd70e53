"""The walk of Triton kernels over cells and labels, whose epilogue a family gives.

Grid: (image x tile of cells, class chunk, part of a very wide cell). A program owns CH rows x (C - 1) columns of cells
and walks down its intervals, the labels between four cell centers. Its P = C R lanes are label columns.
One thread holds all classes of a lane, so the reductions of the softmax are register arithmetic. In exchange,
intervals at the edge of two tiles are computed twice: there are no atomics, and sums have a fixed order.
Derivation, bytes and limits: docs/kernels/focal.md.
"""

import triton
import triton.language as tl

from .axes import Axis, blend, class_blocks, first_label, fraction, load_row
from .softmax import subtract_weights, weight_sum
from .tiles import Geometry, Params, Pixels, fold_and_store, multiply_add, zero_blocks


@triton.jit
def tile(io, params, k0, at, w_all, carry, epilogue, form, kind):
    """Walk the chunk of classes that begins at k0 down the intervals [y_begin, y_end) of a tile."""
    rows, cols = params.rows, params.cols
    count = params.classes - k0
    # The logit of no class: -inf, but finite if a factor may be 0
    PADDING: tl.constexpr = -1e38 if kind.BLEND_Y or kind.BLEND_X else float("-inf")
    s_b, s_k, s_y, s_x = params.input
    p_image = io.input + at.image * s_b + tl.cast(k0, tl.int64) * s_k
    ks = class_blocks(kind.KS)
    chunk = epilogue.LOAD(io, params, k0, ks, at, form, kind)
    lo = first_label(rows, at.y_begin)
    # A label index is never negative, but the compiler can't infer that. With this 0 in a stride it keeps no address
    # per class in registers across the loop; with it in a row's address, it can't take that for aligned.
    opaque = (lo < 0).to(tl.int32)
    # Interval -1 weighs its upper row by 0. That is row 1, as in F.interpolate, whose 0 * inf is NaN there too.
    y_top = tl.minimum(tl.where(at.y_begin < 0, 1, at.y_begin), rows.cells - 1)
    p_row = p_image + (y_top * s_y + opaque)
    top = load_row(p_row, s_k, s_x, ks, count, at, kind.BLEND_X, PADDING, kind.ACC)
    g_top = zero_blocks(ks, kind.C * kind.R, kind.ACC)
    b_top = tl.zeros((kind.C * kind.R,), kind.ACC)
    for y in range(at.y_begin, at.y_end):
        bottom = top
        hi = first_label(rows, y + 1)
        opaque = (hi < 0).to(tl.int32)
        if kind.BLEND_Y:
            p_row = p_image + (tl.minimum(y + 1, rows.cells - 1) * s_y + opaque)
            bottom = load_row(p_row, s_k + opaque, s_x, ks, count, at, kind.BLEND_X, PADDING, kind.ACC)
        else:
            p_row = p_image + (y * s_y + opaque)
            top = load_row(p_row, s_k + opaque, s_x, ks, count, at, kind.BLEND_X, PADDING, kind.ACC)
        g_bottom = zero_blocks(ks, kind.C * kind.R, kind.ACC)
        b_bottom = tl.zeros((kind.C * kind.R,), kind.ACC)
        mine = at.inside & (y >= at.y_counts)  # pixels whose loss counts here
        for Y in range(lo, hi):
            n = (at.image * rows.labels + Y) * cols.labels + at.X
            pixels = Pixels(image=at.image, Y=Y, X=at.X, n=n, inside=at.inside, mine=mine, opaque=opaque)
            fy = fraction(rows, Y, y, kind.ACC)
            z = top
            if kind.BLEND_Y:
                # beyond the last row of cells both are equal, and 0 would make NaN of an infinity
                z = blend(top, bottom, tl.where(y + 1 < rows.cells, fy, 0.5).to(kind.ACC))
            carry, v, coefs = epilogue.ROW(io, params, z, ks, k0, pixels, chunk, w_all, carry, form, kind)
            if io.grad is not None and kind.BLEND_Y:
                g_top = multiply_add(((1.0 - fy) * coefs.scale)[None, :], v, g_top)
                g_bottom = multiply_add((fy * coefs.scale)[None, :], v, g_bottom)
                if kind.SMOOTHED:
                    b_top += (1.0 - fy) * coefs.b
                    b_bottom += fy * coefs.b
            elif io.grad is not None:
                g_top = multiply_add(coefs.scale[None, :], v, g_top)
                if kind.SMOOTHED:
                    b_top += coefs.b
        if io.grad is not None:
            if y >= at.y_cells:
                g_b, g_k, g_y, g_x = params.grad
                p_grad = io.grad + tl.program_id(2).to(tl.int64) * params.grad_part + at.image * g_b + y * g_y
                p_grad += tl.cast(k0, tl.int64) * g_k
                g = g_top
                if kind.SMOOTHED:
                    g = subtract_weights(g_top, b_top, k0, ks, io.weight, count)
                fold_and_store(p_grad, g_k + opaque, g_x, g, ks, count, at, kind.C, kind.R, kind.BLEND_X)
            b_top = b_bottom
            g_top = g_bottom
        top = bottom
        lo = hi
    return carry


@triton.jit
def tile_geometry(params, height, with_grad: tl.constexpr, kind):
    """The tile of this program."""
    rows, cols = params.rows, params.cols
    BEFORE_Y: tl.constexpr = 1 if kind.BLEND_Y else 0  # intervals are numbered from -1
    BEFORE_X: tl.constexpr = 1 if kind.BLEND_X else 0
    HALO_Y: tl.constexpr = BEFORE_Y if with_grad else 0
    HALO_X: tl.constexpr = BEFORE_X if with_grad else 0
    C: tl.constexpr = kind.C
    R: tl.constexpr = kind.R
    tiles_x = tl.cdiv(cols.cells + BEFORE_X - HALO_X, C - HALO_X).to(tl.int32)
    tiles_y = tl.cdiv(rows.cells + BEFORE_Y - HALO_Y, height).to(tl.int32)
    pid = tl.program_id(0)
    i_x, i_y = pid % tiles_x, pid // tiles_x % tiles_y

    y_begin = i_y * height - BEFORE_Y
    y_end = tl.minimum(y_begin + height + HALO_Y, rows.cells)
    lane = tl.arange(0, C * R)
    x_begin = i_x * (C - HALO_X) - BEFORE_X
    x = x_begin + lane // R  # [P] intervals
    X = first_label(cols, x) + tl.program_id(2) * R + lane % R  # [P] label columns
    inside = first_label(cols, x + 1) > X
    # lanes of the neighbor to the left count nothing here
    y_mine = y_begin + tl.where(i_y == 0, 0, HALO_Y)
    cell = tl.arange(0, C)
    return Geometry(
        image=(pid // tiles_x // tiles_y).to(tl.int64),
        y_begin=y_begin,
        y_cells=y_begin + HALO_Y,
        y_end=y_end,
        left=tl.minimum(tl.where(x < 0, 1, x), cols.cells - 1)[None, :],  # interval -1: see `tile`
        right=tl.minimum(x + 1, cols.cells - 1)[None, :],
        # not 0 for an idle lane: a NaN in it would reach its cells
        fx=tl.where(inside, fraction(cols, X, x, kind.ACC), 0.5)[None, :],
        X=X,
        inside=inside,
        y_counts=tl.where(lane // R >= tl.where(i_x == 0, 0, HALO_X), y_mine, y_end),
        x_cell=(x_begin + cell).to(tl.int64)[None, :],
        my_cells=((cell >= HALO_X) & (x_begin + cell < cols.cells))[None, :],
    )


# Numbers are arguments of their own: Triton compiles anew for a 1, a multiple of 16 or a large integer within a tuple,
# on which do_not_specialize has no effect. Arguments also stay in constant memory and take no registers.
@triton.jit(do_not_specialize=list(range(4, 38)))
def walk(
    io, epilogue, form, kind, gamma: tl.float64, smoothing: tl.float64, alpha: tl.float64, ignore_index: tl.int64,
    ignored_loss: tl.float64, classes: tl.int32, height: tl.int32,
    y_cells: tl.int32, y_labels: tl.int32, y_mul: tl.int32, y_add: tl.int32, y_den: tl.int32,
    x_cells: tl.int32, x_labels: tl.int32, x_mul: tl.int32, x_add: tl.int32, x_den: tl.int32,
    input_b: tl.int64, input_k: tl.int64, input_y: tl.int64, input_x: tl.int64,
    target_b: tl.int64, target_k: tl.int64, target_y: tl.int64, target_x: tl.int64,
    upstream_b: tl.int64, upstream_k: tl.int64, upstream_y: tl.int64, upstream_x: tl.int64,
    grad_b: tl.int64, grad_k: tl.int64, grad_y: tl.int64, grad_x: tl.int64, grad_part: tl.int64,
):  # fmt: skip
    """One program: its tile's geometry, then its chunk of classes, or all chunks, one after the other.

    io: the tensors of a family, among them input, target, weight and grad, each None if absent.
    """
    params = Params(
        gamma=tl.full((), gamma, kind.ACC),
        smoothing=tl.full((), smoothing, kind.ACC),
        alpha=tl.full((), alpha, kind.ACC),
        ignore_index=ignore_index,
        ignored_loss=tl.full((), ignored_loss, kind.ACC),
        classes=classes,
        rows=Axis(y_cells, y_labels, y_mul, y_add, y_den),
        cols=Axis(x_cells, x_labels, x_mul, x_add, x_den),
        input=(input_b, input_k, input_y, input_x),
        target=(target_b, target_k, target_y, target_x),
        grad_loss=(upstream_b, upstream_k, upstream_y, upstream_x),
        grad=(grad_b, grad_k, grad_y, grad_x),
        grad_part=grad_part,
    )
    at = tile_geometry(params, height, io.grad is not None, kind)
    carry = epilogue.BEGIN(form, kind)
    w_all = weight_sum(io.weight, params.classes, kind.KALL, kind.ACC)
    if kind.SPAN == "sweep":
        for k0 in range(0, params.classes, kind.BK):
            carry = tile(io, params, k0, at, w_all, carry, epilogue, form, kind)
            tl.debug_barrier()  # another thread may have written a lane's state
        epilogue.END(io, params, 0, carry, form, kind)
    elif kind.SPAN == "whole":
        carry = tile(io, params, 0, at, w_all, carry, epilogue, form, kind)  # a constant, which saves registers
        epilogue.END(io, params, 0, carry, form, kind)
    else:
        k0 = tl.program_id(1) * kind.BK
        carry = tile(io, params, k0, at, w_all, carry, epilogue, form, kind)
        epilogue.END(io, params, k0, carry, form, kind)
