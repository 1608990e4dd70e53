"""Launchers of the Triton kernels: what to walk, in which tiles.

Tile choices are by argument and not by measurement: nothing here has been timed on a device.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.checks import accumulator
from .triton_reduce import select_digit, sum_totals
from .triton_walk import walk

# Classes of a chunk, and how many of them one thread can hold for a lane, in fp32: as many as
# compile without spills for sm_80 and sm_90. "softmax" holds five values per class, two rows of logits, two of gradient
# and the exponentials, "smoothed" (softmax with label smoothing) the weights too; where threads share a lane they
# exchange partial maxima and sums, and beyond 64 classes a second reading of the logits is cheaper than that.
CLASSES = {"softmax": (64, 24), "smoothed": (64, 20), "statistics": (20, 20), "given": (24, 24), "sigmoid": (12, 12)}
# Lanes of a program; of these the one that leaves fewer idle at the right edge.
LANES = (128, 64)
# Rows of cells per program: the fewer, the more programs; the more, the less is walked twice.
ROWS = (32, 16, 8, 4)
ENOUGH_PROGRAMS = 1024


class View(NamedTuple):
    data: Tensor
    strides: tuple[int, ...]


class Axis(NamedTuple):
    """Label d lies at cell coordinate (mul d + add) / den: csrc/common/resize.h, but for an axis whose labels all lie
    on cell 0, which is written with a den that none of them reaches."""

    cells: int
    labels: int
    mul: int
    add: int
    den: int


class Arguments(NamedTuple):
    """What a walk reads and writes, each a pointer, a View with strides (b, k, y, x), or None."""

    input: View  # [B, K, h, w]
    target: View  # [B, H, W] or [B, K, H, W]
    grad_loss: View | None  # like loss
    loss: Tensor | None  # [B, H, W] or [B, K, H, W]
    grad: View | None  # [B, K, h, w], and the stride of its parts
    classes: int
    rows: Axis
    cols: Axis
    weight: Tensor | None = None  # [K]
    keep_above: Tensor | None = None  # []
    argmax: Tensor | None = None  # [B, H, W]
    state: tuple[Tensor, ...] | None = None  # 3 or 4 times [B, H, W]
    partials: Tensor | None = None  # [programs, 8]


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


def make_axis(cells: int, labels: int, align_corners: bool) -> Axis:
    if not align_corners:
        return Axis(cells, labels, 2 * cells, cells - labels, 2 * labels)
    if cells == 1 or labels <= 1:
        return Axis(cells, labels, 1, 0, labels + 1)
    return Axis(cells, labels, cells - 1, 0, labels - 1)


def class_sizes(classes: int) -> tuple[int, ...]:
    """At most three powers of two that sum to at least `classes`, falling: 19 -> 16, 2, 1."""
    sizes = [1 << (classes.bit_length() - 1)]
    while sum(sizes) < classes:
        rest = classes - sum(sizes)
        sizes.append(triton.next_power_of_2(rest) if len(sizes) == 2 else 1 << (rest.bit_length() - 1))
    return tuple(sizes) if sum(sizes) < triton.next_power_of_2(classes) else (triton.next_power_of_2(classes),)


def classes_of(phase: str, acc: torch.dtype) -> tuple[int, int]:
    chunk, thread = CLASSES[phase]
    return (chunk, thread) if acc == torch.float32 else (chunk // 2, thread // 4)


def make_tiles(
    phase: str, batch: int, classes: int, rows: Axis, cols: Axis, acc: torch.dtype, with_grad: bool
) -> Tiles:
    largest_chunk, per_thread = classes_of(phase, acc)
    chunks = triton.cdiv(classes, largest_chunk)
    chunk = class_sizes(triton.cdiv(classes, chunks))
    threads = triton.next_power_of_2(triton.cdiv(sum(chunk), per_thread))  # that share a lane
    before_y, before_x = int(rows.cells != rows.labels), int(cols.cells != cols.labels)
    halo_y, halo_x = (before_y, before_x) if with_grad else (0, 0)
    labels_per_cell = max(1, min(triton.cdiv(cols.den, cols.mul), cols.labels)) if before_x else 1

    def across(lanes: int) -> tuple[int, int, int, int]:  # width, columns, tiles, parts
        width = min(triton.next_power_of_2(labels_per_cell), lanes // 4)
        tiles = triton.cdiv(cols.cells + before_x - halo_x, lanes // width - halo_x)
        return width, lanes // width, tiles, triton.cdiv(labels_per_cell, width)

    def visited(lanes: int) -> int:
        _, _, tiles, parts = across(lanes)
        return lanes * tiles * parts

    lanes = min(LANES if threads == 1 else LANES[1:], key=visited)
    width, columns, tiles_x, parts = across(lanes)

    def programs(height: int) -> int:
        return batch * tiles_x * triton.cdiv(rows.cells + before_y - halo_y, height)

    height = next((n for n in ROWS if programs(n) * chunks * parts >= ENOUGH_PROGRAMS), ROWS[-1])
    return Tiles(lanes, chunk, chunks, columns, width, parts, height, programs(height), lanes // 32 * threads)


def view(tensor: Tensor, per_class: bool) -> View:
    """With strides (b, k, y, x); 0 for k where the tensor has none, and for all where it is one number."""
    if tensor.ndim == 0:
        return View(tensor, (0, 0, 0, 0))
    strides = tensor.stride()
    return View(tensor, strides if per_class else (strides[0], 0, *strides[1:]))


def make_arguments(
    input: Tensor,
    target: Tensor,
    grad_loss: Tensor | None,
    align_corners: bool,
    loss: Tensor | None,
    grad: Tensor | None,
    per_class: bool,
    **others: Any,
) -> Arguments:
    return Arguments(
        input=view(input, True),
        target=view(target, target.ndim == 4),
        grad_loss=None if grad_loss is None else view(grad_loss, per_class),
        loss=loss if loss is not None and loss.ndim else None,
        grad=None if grad is None else view(grad, True),
        classes=input.shape[1],
        rows=make_axis(input.shape[2], target.shape[-2], align_corners),
        cols=make_axis(input.shape[3], target.shape[-1], align_corners),
        **others,
    )


def on_device_of(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def launch(phase: str, arguments: Arguments, gamma: float = 0.0, smoothing: float = 0.0,
           alpha: float = -1.0, ignore_index: int = 0) -> Tensor:  # fmt: skip
    """Runs one walk, and returns the totals of its programs, [programs, 8]."""
    logits, target = arguments.input.data, arguments.target.data
    acc = accumulator(logits.dtype)
    if logits.numel() == 0:
        return logits.new_empty((0, 8), dtype=torch.float64)
    rows, cols, grad = arguments.rows, arguments.cols, arguments.grad
    limits = "smoothed" if phase == "softmax" and smoothing else phase
    tiles = make_tiles(limits, logits.shape[0], arguments.classes, rows, cols, acc, grad is not None)
    grid = (tiles.programs, 1 if phase == "statistics" else tiles.chunks, tiles.parts)
    partials = logits.new_empty((math.prod(grid), 8), dtype=torch.float64)
    # An interval with more labels than a program has lanes for is shared out, each part with a gradient of its own.
    shares = None
    if grad is not None and tiles.parts > 1:
        shares = logits.new_empty((tiles.parts, *logits.shape), dtype=acc)
        grad = View(shares, (*shares.stride()[1:], shares.stride(0)))
    elif grad is not None:
        grad = View(grad.data, (*grad.strides, 0))
    in_range = target.dtype == torch.int64 or -(2**31) <= ignore_index < 2**31
    walk[grid](
        arguments._replace(partials=None if phase == "given" else partials, grad=grad),
        PHASE=phase, DENSE=target.is_floating_point(), GAMMA=gamma, SMOOTHING=smoothing, ALPHA=alpha,
        IGNORE=ignore_index if in_range else None, KS=tiles.chunk, BK=sum(tiles.chunk),
        KALL=triton.next_power_of_2(arguments.classes), C=tiles.columns, R=tiles.width, CH=tiles.rows,
        BLEND_Y=rows.cells != rows.labels, BLEND_X=cols.cells != cols.labels,
        ACC=tl.float64 if acc == torch.float64 else tl.float32, num_warps=tiles.warps, enable_fp_fusion=True,
    )  # fmt: skip
    if shares is not None and arguments.grad is not None:
        arguments.grad.data.copy_(shares.sum(0))
    return partials


def finish(partials: Tensor, loss: Tensor | None, totals: Tensor | None) -> None:
    """The sums of a walk's partial totals, where they are asked for."""
    with_loss = loss is not None and loss.ndim == 0
    if totals is None and not with_loss:
        return
    totals = partials.new_empty(5) if totals is None else totals
    sum_totals[(1,)](partials, partials.shape[0], loss if with_loss else None, totals, WITH_LOSS=with_loss, BLOCK=128)


def focal_kernel(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    keep_above: Tensor | None,
    grad_loss: Tensor | None,
    gamma: float,
    label_smoothing: float,
    ignore_index: int,
    align_corners: bool,
    loss: Tensor | None,
    totals: Tensor | None,
    argmax: Tensor | None,
    grad: Tensor | None,
) -> None:
    acc = accumulator(input.dtype)
    arguments = make_arguments(
        input, target, grad_loss, align_corners, loss, grad, False, weight=weight, keep_above=keep_above, argmax=argmax
    )
    scalars: dict[str, Any] = {"gamma": gamma, "smoothing": label_smoothing, "ignore_index": ignore_index}
    with on_device_of(input):
        if input.shape[1] <= classes_of("softmax", acc)[0]:
            partials = launch("softmax", arguments, **scalars)
        else:
            state = tuple(input.new_empty(target.shape, dtype=acc) for _ in range(4 if label_smoothing else 3))
            partials = launch("statistics", arguments._replace(grad=None, state=state), **scalars)
            if grad is not None:
                rest = arguments._replace(keep_above=None, grad_loss=None, loss=None, argmax=None, state=state)
                launch("given", rest, **scalars)
        finish(partials, loss, totals)


def sigmoid_focal_kernel(
    input: Tensor,
    target: Tensor,
    grad_loss: Tensor | None,
    gamma: float,
    alpha: float,
    ignore_index: int,
    align_corners: bool,
    loss: Tensor | None,
    totals: Tensor | None,
    grad: Tensor | None,
) -> None:
    arguments = make_arguments(input, target, grad_loss, align_corners, loss, grad, True)
    with on_device_of(input):
        partials = launch("sigmoid", arguments, gamma=gamma, alpha=alpha, ignore_index=ignore_index)
        finish(partials, loss, totals)


def kth_largest_kernel(values: Tensor, k: int, result: Tensor) -> None:
    if k >= values.numel():
        result.fill_(-1.0)
        return
    bits = 8 * values.element_size()
    histograms = torch.zeros((bits // 8, 256), dtype=torch.int64, device=values.device)
    block = 4096
    programs = min(triton.cdiv(values.numel(), block), 1024)
    with on_device_of(values):
        for i in range(bits // 8 + 1):
            select_digit[(programs if i < bits // 8 else 1,)](
                values, values.numel(), k, histograms, result, PASS=i, UINT=tl.uint32 if bits == 32 else tl.uint64,
                BITS=bits, BLOCK=block,
            )  # fmt: skip
