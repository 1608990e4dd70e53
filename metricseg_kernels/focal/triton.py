"""Launchers of the focal family's Triton kernels: tile constants from shapes, and run-time arguments."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, TYPES, constant, on_device_of
from ..engines.resized.triton import class_sizes, make_axis
from ..engines.resized.triton_kernels import Axis
from .triton_kernels.reduce import count_digits, select_among, select_digit, sum_totals
from .triton_kernels.tiles import Kind, Tensors
from .triton_kernels.walk import walk


class Limits(NamedTuple):
    """Sizes of a phase in fp32 that compile without spills for sm_80 and sm_90."""

    chunk: int  # classes that one program takes at once
    thread: int  # classes that one thread holds for a lane


# "softmax" holds five values per class: two rows of logits, two of gradient and the exponentials. Label smoothing adds
# the weights. Threads that share a lane exchange partial maxima and sums; beyond 64 classes a second reading of the
# logits is cheaper than that.
LIMITS = {
    "softmax": Limits(64, 24),
    "softmax, smoothed": Limits(64, 20),
    "statistics": Limits(20, 20),
    "gradient": Limits(24, 24),
    "sigmoid": Limits(12, 12),
    "sigmoid, dense": Limits(8, 8),
}
# Registers of a thread. Without a limit ptxas aims at more blocks to a multiprocessor and may spill for them. "sigmoid"
# fits three blocks of 128 threads without, if gamma is 0, 1 or 2 and no gradient comes in.
REGISTERS, SIGMOID_REGISTERS = 255, 168
REGISTER_FILE = 65536  # of a multiprocessor
# Lanes of a program: the choice that leaves fewer idle at the right edge.
LANES = (128, 64)
# Rows of cells per program. Fewer give more programs; more give less work at the edges of tiles, which is done twice.
ROWS = (32, 16, 8, 4)
ENOUGH_PROGRAMS = 1024
BLOCK = 4096  # values of a step of the selection
FIRST_BITS = 11  # of a key, which the first of two launches counts
FEW = 1 << 16  # values whose selection takes two launches, by calculation: docs/kernels/focal.md


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


def limits_of(phase: str, acc: torch.dtype, smoothed: bool = False, dense: bool = False) -> Limits:
    variant = "smoothed" if smoothed else "dense" if dense else ""
    limits = LIMITS.get(f"{phase}, {variant}", LIMITS[phase])
    if acc == torch.float32:
        return limits
    thread = limits.thread // 4
    return Limits(min(limits.chunk // 2, 4 * thread), thread)  # more than four threads to a lane have too few registers


def make_tiles(limits: Limits, batch: int, classes: int, rows: Axis, cols: Axis, with_grad: bool) -> Tiles:
    chunks = triton.cdiv(classes, limits.chunk)
    chunk = class_sizes(triton.cdiv(classes, chunks))
    threads = triton.next_power_of_2(triton.cdiv(sum(chunk), limits.thread))  # that share a lane
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


def strides(tensor: Tensor | None) -> tuple[int, ...]:
    """(b, k, y, x), 0 for a dimension that the tensor does not have."""
    if tensor is None or tensor.ndim == 0:
        return 0, 0, 0, 0
    stride = tensor.stride()
    return stride[-4:] if tensor.ndim >= 4 else (stride[0], 0, *stride[1:])


def launch(
    phase: str,
    io: Tensors,
    align_corners: bool,
    gamma: float,
    ignore_index: int,
    smoothing: float = 0.0,
    alpha: float = -1.0,
    *,
    ignored_loss: float = 0.0,
    sums: bool = True,
) -> Tensor:
    """Run one walk. Returns the totals of its programs, [programs, 8], if sums are asked for."""
    logits, target, grad = io.input, io.target, io.grad
    acc = accumulator(logits.dtype)
    if logits.numel() == 0:
        return logits.new_empty((0, 8), dtype=torch.float64)
    classes = logits.shape[1]
    rows, cols = (make_axis(logits.shape[i], target.shape[i], align_corners) for i in (-2, -1))
    limits = limits_of(phase, acc, smoothing > 0, target.is_floating_point())
    tiles = make_tiles(limits, logits.shape[0], classes, rows, cols, grad is not None)
    grid = (tiles.programs, 1 if phase == "statistics" else tiles.chunks, tiles.parts)
    partials = logits.new_empty((math.prod(grid), 8), dtype=torch.float64)
    # An interval with more labels than a program has lanes for is split, and each part has a gradient of its own.
    shares = logits.new_empty((tiles.parts, *logits.shape), dtype=acc) if grad is not None and tiles.parts > 1 else None
    out = grad if shares is None else shares
    kind = Kind(
        PHASE=phase, DENSE=target.is_floating_point(), POWER=int(gamma) if gamma in (0, 1, 2) else -1,
        SMOOTHED=smoothing > 0, ALPHA=alpha >= 0, KS=tiles.chunk, BK=sum(tiles.chunk),
        KALL=triton.next_power_of_2(classes), C=tiles.columns, R=tiles.width, BLEND_Y=rows.cells != rows.labels,
        BLEND_X=cols.cells != cols.labels, ACC=TYPES[acc],
    )  # fmt: skip
    simple = phase == "sigmoid" and kind.POWER >= 0 and io.grad_loss is None
    registers = SIGMOID_REGISTERS if simple else REGISTERS
    walk[grid](
        io._replace(partials=partials if sums else None, grad=out), Kind(*map(constant, kind)),
        gamma, smoothing, alpha, ignore_index, ignored_loss, classes, tiles.rows, *rows, *cols,
        *strides(logits), *strides(target), *strides(io.grad_loss), *strides(out),
        0 if shares is None else shares.stride(0),
        num_warps=tiles.warps, maxnreg=min(registers, REGISTER_FILE // (32 * tiles.warps)), **FUSED,
    )  # fmt: skip
    if grad is not None and shares is not None:
        grad.copy_(shares.sum(0))
    return partials


def wants_sums(loss: Tensor | None, totals: Tensor | None) -> bool:
    return totals is not None or (loss is not None and loss.ndim == 0)


def finish(
    partials: Tensor, loss: Tensor | None, totals: Tensor | None, divisor: Tensor | None = None, by_weight: bool = False
) -> None:
    """The sums of a walk's partial totals, if they are asked for."""
    if not wants_sums(loss, totals):
        return
    totals = partials.new_empty(5) if totals is None else totals
    sum_totals[(1,)](
        partials,
        partials.shape[0],
        None if loss is None or loss.ndim else loss,
        divisor,
        totals,
        BLOCK=128,
        COUNT=2 if by_weight else 1,
        **FUSED,
    )


def loss_map(loss: Tensor | None) -> Tensor | None:
    return loss if loss is not None and loss.ndim else None


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
    ignored_loss: float,
    by_weight: bool,
    loss: Tensor | None,
    totals: Tensor | None,
    divisor: Tensor | None,
    argmax: Tensor | None,
    grad: Tensor | None,
) -> None:
    acc, sums = accumulator(input.dtype), wants_sums(loss, totals)
    io = Tensors(input, target, weight, keep_above, grad_loss, loss_map(loss), argmax, grad)
    scalars: tuple[Any, ...] = (align_corners, gamma, ignore_index, label_smoothing)
    forward = partial(launch, ignored_loss=ignored_loss, sums=sums)
    with on_device_of(input):
        if input.shape[1] <= limits_of("softmax", acc, label_smoothing > 0).chunk:
            partials = forward("softmax", io, *scalars)
        else:
            state = tuple(input.new_empty(target.shape, dtype=acc) for _ in range(4 if label_smoothing else 3))
            partials = forward("statistics", io._replace(grad=None, state=state), *scalars)
            if grad is not None:
                launch("gradient", Tensors(input, target, weight, grad=grad, state=state), *scalars, sums=False)
        finish(partials, loss, totals, divisor, by_weight)


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
    io = Tensors(input, target, grad_loss=grad_loss, loss=loss_map(loss), grad=grad)
    with on_device_of(input):
        sums = wants_sums(loss, totals)
        partials = launch("sigmoid", io, align_corners, gamma, ignore_index, alpha=alpha, sums=sums)
        finish(partials, loss, totals)


def kth_largest_kernel(values: Tensor, k: int, most: float, result: Tensor) -> None:
    """See op.py."""
    size, bits = values.numel(), 8 * values.element_size()
    if k >= size:
        result.fill_(min(-1.0, most))
        return
    kind = {"UINT": tl.uint32 if bits == 32 else tl.uint64, "BITS": bits, **FUSED}
    with on_device_of(values):
        if size <= FEW:
            programs = triton.cdiv(size, BLOCK)
            counts = torch.empty((programs, 1 << FIRST_BITS), dtype=torch.int32, device=values.device)
            count_digits[(programs,)](values, size, counts, FIRST=FIRST_BITS, BLOCK=BLOCK, num_warps=8, **kind)
            kept = torch.empty_like(values, dtype=torch.int32 if bits == 32 else torch.int64)
            select_among[(1,)](
                values, size, k, most, counts, programs, kept, result, FIRST=FIRST_BITS, BLOCK=BLOCK, num_warps=16,
                **kind,
            )  # fmt: skip
            return
        histograms = torch.zeros((bits // 8, 256), dtype=torch.int64, device=values.device)
        programs = min(triton.cdiv(size, BLOCK), 1024)
        for i in range(bits // 8 + 1):
            select_digit[(programs if i < bits // 8 else 1,)](
                values, size, k, most, i, histograms, result, BLOCK=BLOCK, VECTOR=math.gcd(size, 4), **kind
            )
