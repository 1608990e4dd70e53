"""Launchers of the focal family's Triton kernels: tile constants from shapes, and run-time arguments."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, on_device_of
from ..engines.resized.triton import REGISTERS, Limits, Numbers, launch_walk, make_axes, make_tiles, narrow
from .triton_kernels.epilogues import EPILOGUE, Form, Tensors
from .triton_kernels.reduce import count_digits, select_among, select_digit, sum_totals

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
SPANS = {"softmax": "whole", "statistics": "sweep", "gradient": "chunk", "sigmoid": "chunk"}
# "sigmoid" fits three blocks of 128 threads, if gamma is 0, 1 or 2 and no gradient comes in.
SIGMOID_REGISTERS = 168
BLOCK = 4096  # values of a step of the selection
FIRST_BITS = 11  # of a key, which the first of two launches counts
FEW = 1 << 16  # values whose selection takes two launches, by calculation: docs/kernels/focal.md


def limits_of(phase: str, acc: torch.dtype, smoothed: bool = False, dense: bool = False) -> Limits:
    variant = "smoothed" if smoothed else "dense" if dense else ""
    return narrow(LIMITS.get(f"{phase}, {variant}", LIMITS[phase]), acc)


def launch(phase: str, io: Tensors, align_corners: bool, numbers: Numbers, *, sums: bool = True) -> Tensor:
    """Run one walk. Returns the totals of its programs, [programs, 8], if sums are asked for."""
    logits, target, gamma = io.input, io.target, numbers.gamma
    if logits.numel() == 0:
        return logits.new_empty((0, 8), dtype=torch.float64)
    dense = target.is_floating_point()
    limits = limits_of(phase, accumulator(logits.dtype), numbers.smoothing > 0, dense)
    axes = make_axes(logits, target, align_corners)
    tiles = make_tiles(limits, logits.shape[0], logits.shape[1], *axes, io.grad is not None)
    programs = tiles.programs * (1 if phase == "statistics" else tiles.chunks) * tiles.parts
    partials = logits.new_empty((programs, 8), dtype=torch.float64)
    power = int(gamma) if gamma in (0, 1, 2) else -1
    simple = phase == "sigmoid" and power >= 0 and io.grad_loss is None
    launch_walk(
        io._replace(partials=partials if sums else None), EPILOGUE,
        Form(PHASE=phase, DENSE=dense, POWER=power, ALPHA=numbers.alpha >= 0), SPANS[phase], tiles, axes, numbers,
        grad_loss=io.grad_loss, registers=SIGMOID_REGISTERS if simple else REGISTERS,
    )  # fmt: skip
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
    numbers = Numbers(ignore_index, gamma, label_smoothing, ignored_loss=ignored_loss)
    with on_device_of(input):
        if input.shape[1] <= limits_of("softmax", acc, label_smoothing > 0).chunk:
            partials = launch("softmax", io, align_corners, numbers, sums=sums)
        else:
            state = tuple(input.new_empty(target.shape, dtype=acc) for _ in range(4 if label_smoothing else 3))
            partials = launch("statistics", io._replace(grad=None, state=state), align_corners, numbers, sums=sums)
            if grad is not None:
                io = Tensors(input, target, weight, grad=grad, state=state)
                launch("gradient", io, align_corners, numbers, sums=False)
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
        partials = launch("sigmoid", io, align_corners, Numbers(ignore_index, gamma, alpha=alpha), sums=sums)
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
