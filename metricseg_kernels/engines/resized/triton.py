"""Host side of Triton kernels that resize logits: axes, class blocks, and tiles and launches of the walk.

A family brings an `Epilogue` and the sizes that compile without spills; see triton_kernels/walk.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...core.checks import accumulator
from ...core.triton import FUSED, TYPES, constant
from .triton_kernels.axes import Axis
from .triton_kernels.tiles import Epilogue, Kind
from .triton_kernels.walk import walk

# Registers of a thread. Without a limit ptxas aims at more blocks to a multiprocessor and may spill for them.
REGISTERS = 255
REGISTER_FILE = 65536  # of a multiprocessor
# Lanes of a program: the choice that leaves fewer idle at the right edge.
LANES = (128, 64)
# Rows of cells per program. Fewer give more programs; more give less work at the edges of tiles, which is done twice.
ROWS = (32, 16, 8, 4)
ENOUGH_PROGRAMS = 1024


class Limits(NamedTuple):
    """Sizes of a phase in fp32 that compile without spills for sm_80 and sm_90."""

    chunk: int  # classes that one program takes at once
    thread: int  # classes that one thread holds for a lane


class Tiles(NamedTuple):
    """The constants of a walk that follow from shapes."""

    lanes: int
    chunk: tuple[int, ...]  # sizes of the class blocks of a chunk
    chunks: int
    columns: int  # C: cell intervals
    width: int  # R: label columns of an interval
    parts: int  # of an interval wider than R
    rows: int  # CH
    programs: int  # per chunk and part
    warps: int


class Numbers(NamedTuple):
    """Arguments of a call that the epilogues read."""

    ignore_index: int
    gamma: float = 0.0
    smoothing: float = 0.0
    alpha: float = -1.0
    ignored_loss: float = 0.0


def make_axis(cells: int, labels: int, align_corners: bool) -> Axis:
    if not align_corners:
        return Axis(cells, labels, 2 * cells, cells - labels, 2 * labels)
    if cells == 1 or labels <= 1:
        return Axis(cells, labels, 1, 0, labels + 1)
    return Axis(cells, labels, cells - 1, 0, labels - 1)


def make_axes(input: Tensor, target: Tensor, align_corners: bool) -> tuple[Axis, Axis]:
    """(rows, columns)"""
    rows, cols = (make_axis(input.shape[i], target.shape[i], align_corners) for i in (-2, -1))
    return rows, cols


def class_sizes(classes: int) -> tuple[int, ...]:
    """At most three powers of two that sum to at least `classes`, falling: 19 -> 16, 2, 1."""
    sizes = [1 << (classes.bit_length() - 1)]
    while sum(sizes) < classes:
        rest = classes - sum(sizes)
        sizes.append(triton.next_power_of_2(rest) if len(sizes) == 2 else 1 << (rest.bit_length() - 1))
    return tuple(sizes) if sum(sizes) < triton.next_power_of_2(classes) else (triton.next_power_of_2(classes),)


def labels_per_cell(axis: Axis) -> int:
    """Labels of an interval, at most."""
    if axis.cells == axis.labels:
        return 1
    return max(1, min(triton.cdiv(axis.den, axis.mul), axis.labels))


def narrow(limits: Limits, acc: torch.dtype) -> Limits:
    """The limits of fp32 in the accumulator dtype."""
    if acc == torch.float32:
        return limits
    thread = limits.thread // 4
    return Limits(min(limits.chunk // 2, 4 * thread), thread)  # more than four threads to a lane have too few registers


def make_tiles(
    limits: Limits, batch: int, classes: int, rows: Axis, cols: Axis, with_grad: bool, heights: tuple[int, ...] = ROWS
) -> Tiles:
    """heights: CH to choose from, falling."""
    chunks = triton.cdiv(classes, limits.chunk)
    chunk = class_sizes(triton.cdiv(classes, chunks))
    threads = triton.next_power_of_2(triton.cdiv(sum(chunk), limits.thread))  # that share a lane
    before_y, before_x = int(rows.cells != rows.labels), int(cols.cells != cols.labels)
    halo_y, halo_x = (before_y, before_x) if with_grad else (0, 0)
    labels = labels_per_cell(cols)

    def across(lanes: int) -> tuple[int, int, int, int]:  # width, columns, tiles, parts
        width = min(triton.next_power_of_2(labels), lanes // 4)
        tiles = triton.cdiv(cols.cells + before_x - halo_x, lanes // width - halo_x)
        return width, lanes // width, tiles, triton.cdiv(labels, width)

    def visited(lanes: int) -> int:
        _, _, tiles, parts = across(lanes)
        return lanes * tiles * parts

    lanes = min(LANES if threads == 1 else LANES[1:], key=visited)
    width, columns, tiles_x, parts = across(lanes)

    def programs(height: int) -> int:
        return batch * tiles_x * triton.cdiv(rows.cells + before_y - halo_y, height)

    height = next((n for n in heights if programs(n) * chunks * parts >= ENOUGH_PROGRAMS), heights[-1])
    return Tiles(lanes, chunk, chunks, columns, width, parts, height, programs(height), lanes // 32 * threads)


def strides(tensor: Tensor | None) -> tuple[int, ...]:
    """(b, k, y, x), 0 for a dimension that the tensor does not have."""
    if tensor is None or tensor.ndim == 0:
        return 0, 0, 0, 0
    stride = tensor.stride()
    return stride[-4:] if tensor.ndim >= 4 else (stride[0], 0, *stride[1:])


def launch_walk(
    io: Any,
    epilogue: Epilogue,
    form: Any,
    span: str,
    tiles: Tiles,
    axes: tuple[Axis, Axis],
    numbers: Numbers,
    *,
    grad_loss: Tensor | None = None,
    registers: int = REGISTERS,
) -> None:
    """Run one walk over a family's tensors `io`, of which it takes input, target, weight and grad.

    form: the family's constants, a NamedTuple. span: see `Kind`. grad_loss: a map that comes in, for its strides.
    """
    logits, grad = io.input, io.grad
    classes, acc = logits.shape[1], accumulator(logits.dtype)
    rows, cols = axes
    # An interval with more labels than a program has lanes for is split, and each part has a gradient of its own.
    shares = logits.new_empty((tiles.parts, *logits.shape), dtype=acc) if grad is not None and tiles.parts > 1 else None
    out = grad if shares is None else shares
    kind = Kind(
        SPAN=span, SMOOTHED=numbers.smoothing > 0, KS=tiles.chunk, BK=sum(tiles.chunk),
        KALL=triton.next_power_of_2(classes), C=tiles.columns, R=tiles.width, BLEND_Y=rows.cells != rows.labels,
        BLEND_X=cols.cells != cols.labels, ACC=TYPES[acc],
    )  # fmt: skip
    walk[tiles.programs, 1 if span == "sweep" else tiles.chunks, tiles.parts](
        io._replace(grad=out), epilogue, type(form)(*map(constant, form)), Kind(*map(constant, kind)),
        numbers.gamma, numbers.smoothing, numbers.alpha, numbers.ignore_index, numbers.ignored_loss, classes,
        tiles.rows, *rows, *cols, *strides(logits), *strides(io.target), *strides(grad_loss), *strides(out),
        0 if shares is None else shares.stride(0),
        num_warps=tiles.warps, maxnreg=min(registers, REGISTER_FILE // (32 * tiles.warps)), **FUSED,
    )  # fmt: skip
    if grad is not None and shares is not None:
        grad.copy_(shares.sum(0))
