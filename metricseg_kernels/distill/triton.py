"""Launchers of the distill family's Triton kernels: one to three walks, and the sums of their programs."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, disguised, on_device_of
from ..engines.resized.triton import Limits, Numbers, launch_walk, make_axis, make_tiles, narrow
from ..engines.resized.triton_kernels.axes import Axis
from .op import KINDS
from .triton_kernels.epilogues import EPILOGUE, Form, Tensors, sum_partials
from .triton_kernels.other import Map

# A lane holds per class two rows of logits, two of gradient, and the exponentials of both maps.
LIMITS = {
    "whole": Limits(40, 10),
    "whole, js": Limits(32, 8),
    "statistics": Limits(12, 12),
    "divergence": Limits(10, 10),
    "gradient": Limits(12, 12),
}
SPANS = {"whole": "whole", "statistics": "sweep", "divergence": "sweep", "gradient": "chunk"}
SUMMED_ROWS = 256  # of partial sums at once


class Call:
    """A call of the op: what its walks share."""

    def __init__(self, input: Tensor, other: Tensor, size: tuple[int, int], kind: int, align_corners: bool) -> None:
        self.input, self.kind, self.acc = input, kind, accumulator(input.dtype)
        rows, cols = (make_axis(input.shape[i], size[i], align_corners) for i in (-2, -1))
        self.axes = rows, cols
        of_other = [make_axis(other.shape[i], size[i], align_corners) for i in (-2, -1)]
        self.blend_y, self.blend_x = (axis.cells != axis.labels for axis in of_other)
        self.wide = any(2 * axis.cells * axis.labels >= 2**30 for axis in of_other)
        self.other = Map(other, tuple(map(disguised, other.stride())), *(Axis(*map(disguised, a)) for a in of_other))
        self.sums = "whole" if self.fits() else "divergence" if KINDS[kind] == "js" else "statistics"

    def limits(self, phase: str) -> Limits:
        return narrow(LIMITS.get(f"{phase}, {KINDS[self.kind]}", LIMITS[phase]), self.acc)

    def fits(self) -> bool:
        return bool(self.input.shape[1] <= self.limits("whole").chunk)

    def phases(self, with_grad: bool) -> list[str]:
        """The walks of the call."""
        if self.fits():
            return ["whole"]
        return ["statistics", *([self.sums] if self.sums != "statistics" else []), *(["gradient"] if with_grad else [])]

    def launch(self, phase: str, io: Tensors, numbers: Numbers, reduces: bool) -> Tensor | None:
        """Run one walk. Returns the sums of its programs, [programs, 2], if they are wanted and it makes them."""
        shape, partials = self.input.shape, None
        if phase not in ("whole", "gradient"):
            io = io._replace(grad=None)
        tiles = make_tiles(self.limits(phase), shape[0], shape[1], *self.axes, io.grad is not None)
        if phase != self.sums:
            io = io._replace(loss=None)
        elif reduces:
            partials = self.input.new_empty((tiles.programs * tiles.parts, 2), dtype=torch.float64)
            io = io._replace(loss=None, partials=partials)
        form = Form(phase, self.kind, self.blend_y, self.blend_x, tl.int64 if self.wide else tl.int32)
        launch_walk(io, EPILOGUE, form, SPANS[phase], tiles, self.axes, numbers, grad_loss=io.grad_loss)
        return partials


def distill_kernel(
    input: Tensor,
    other: Tensor,
    target: Tensor | None,
    grad_loss: Tensor | None,
    height: int,
    width: int,
    temperature: float,
    kind: int,
    ignore_index: int,
    align_corners: bool,
    loss: Tensor | None,
    divisor: Tensor | None,
    grad: Tensor | None,
) -> None:
    """See op.py."""
    if input.shape[0] * height * width == 0:
        for out, value in ((loss, 0), (divisor, 1), (grad, 0)):
            if out is not None:
                out.fill_(value)
        return
    call = Call(input, other, (height, width), kind, align_corners)
    phases = call.phases(grad is not None)
    state: Any = None
    if phases != ["whole"]:
        pixels = (input.shape[0], height, width)
        state = tuple(input.new_empty(pixels, dtype=call.acc) for _ in range(6 if KINDS[kind] == "js" else 5))
    reduces = loss is not None and loss.ndim == 0
    io = Tensors(input, call.other, target, grad_loss=grad_loss, loss=loss, grad=grad, state=state)
    numbers = Numbers(ignore_index, gamma=temperature)
    with on_device_of(input):
        for phase in phases:
            partials = call.launch(phase, io, numbers, reduces)
            if partials is not None:
                sum_partials[(1,)](partials, partials.shape[0], loss, divisor, ROWS=SUMMED_ROWS, num_warps=4, **FUSED)
