"""Launchers of the region family's Triton kernels: one or two walks, and in forward the sums of their programs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, TYPES, cdiv, on_device_of
from ..engines.resized.triton import (
    ROWS,
    Limits,
    Numbers,
    Tiles,
    labels_per_cell,
    launch_walk,
    make_axes,
    make_tiles,
    narrow,
)
from .op import Inputs
from .triton_kernels.epilogues import EPILOGUE, Form, Tensors
from .triton_kernels.sums import add_sums

# A lane holds per class, beyond the two rows of logits, in forward three sums, in backward two rows of gradient; of a
# softmax also the exponentials, and in backward dL/dp.
LIMITS = {
    "forward softmax": Limits(64, 20),
    "forward statistics": Limits(20, 20),
    "forward chunk": Limits(20, 20),
    "forward sigmoid": Limits(16, 16),
    "backward softmax": Limits(64, 20),
    "backward softmax, dense": Limits(48, 12),
    "backward statistics": Limits(16, 16),
    "backward chunk": Limits(16, 16),
    "backward sigmoid": Limits(12, 12),
}
WIDE_SUMS = 12  # classes of a thread at most if the sums of a lane are in fp64
SPANS = {"softmax": "whole", "statistics": "sweep", "chunk": "chunk", "sigmoid": "chunk"}
MOST_ROWS = 64  # label rows of a lane that are added in fp32
SUMMED_ROWS, SUMMED_COLUMNS = 256, 16  # of partial sums at once


class Call:
    """A call of the op: what its walks share."""

    def __init__(self, inputs: Inputs, images: int, backward: bool) -> None:
        self.inputs, self.images, self.backward = inputs, images, backward
        self.acc = accumulator(inputs.input.dtype)
        self.dense = inputs.target.is_floating_point()
        self.axes = make_axes(inputs.input, inputs.target, inputs.align_corners)
        self.numbers = Numbers(inputs.ignore_index, inputs.gamma, inputs.label_smoothing)
        self.sum = self.acc if labels_per_cell(self.axes[0]) <= MOST_ROWS else torch.float64

    def limits(self, phase: str) -> Limits:
        name = f"{'backward' if self.backward else 'forward'} {phase}"
        limits = LIMITS.get(f"{name}, dense" if self.dense else name, LIMITS[name])
        if not self.backward and self.sum != self.acc:
            limits = Limits(min(limits.chunk, 4 * WIDE_SUMS), min(limits.thread, WIDE_SUMS))
        return narrow(limits, self.acc)

    def phases(self) -> tuple[str, ...]:
        """The walks of the call."""
        classes = self.inputs.input.shape[1]
        if not self.inputs.softmax:
            return ("sigmoid",)
        return ("softmax",) if classes <= self.limits("softmax").chunk else ("statistics", "chunk")

    def tiles(self, phase: str) -> Tiles:
        shape = self.inputs.input.shape
        heights: tuple[int, ...] = ROWS
        if not self.backward:
            most = MOST_ROWS // labels_per_cell(self.axes[0])
            heights = tuple(rows for rows in (*ROWS, 2) if rows <= most) or (1,)
        with_grad = self.backward and phase != "statistics"
        return make_tiles(self.limits(phase), shape[0], shape[1], *self.axes, with_grad, heights)

    def state(self) -> tuple[Tensor, ...]:
        """Memory for the statistics of each pixel: tensors [B, H, W]."""
        count = 3 + self.backward + (self.numbers.smoothing > 0)
        batch, (height, width) = self.inputs.input.shape[0], self.inputs.target.shape[-2:]
        return tuple(self.inputs.input.new_empty((batch, height, width), dtype=self.acc) for _ in range(count))

    def launch(self, phase: str, tiles: Tiles, **tensors: Any) -> None:
        inputs, gamma = self.inputs, self.inputs.gamma
        form = Form(
            PHASE=phase, BACKWARD=self.backward, DENSE=self.dense, PIXEL_LOSS=inputs.pixel_loss,
            POWER=int(gamma) if gamma in (0, 1, 2) else -1, PER_IMAGE=self.images != 1,
            SUM=TYPES[self.sum],
        )  # fmt: skip
        io = Tensors(inputs.input, inputs.target, inputs.weight, **tensors)
        launch_walk(io, EPILOGUE, form, SPANS[phase], tiles, self.axes, self.numbers)


def region_fwd_kernel(inputs: Inputs, sums: Tensor, loss: Tensor, totals: Tensor) -> None:
    """See op.py."""
    images, columns = sums.shape[0], 3 * sums.shape[1]
    if inputs.target.numel() == 0:
        for out in (sums, loss, totals):
            out.zero_()
        return
    call = Call(inputs, images, backward=False)
    phases = call.phases()
    tensors: dict[str, Any] = {"state": call.state()} if len(phases) > 1 else {}
    rows = []
    with on_device_of(inputs.input):
        for phase in phases:
            tiles = call.tiles(phase)
            rows.append(tiles.programs * tiles.parts)
            if phase == phases[0]:
                tensors["extras"] = extras = sums.new_empty((rows[0], 4))
            if phase == phases[-1]:
                tensors["sums"] = partials = sums.new_empty((rows[-1], columns))
            call.launch(phase, tiles, **tensors)
            tensors.pop("extras", None)
        add_sums[images, cdiv(columns, SUMMED_COLUMNS) + 1](
            partials, extras, sums, loss, totals, rows[-1] // images, rows[0] // images, columns,
            ROWS=SUMMED_ROWS, COLUMNS=SUMMED_COLUMNS, num_warps=8, **FUSED,
        )  # fmt: skip


def region_bwd_kernel(inputs: Inputs, grad_sums: Tensor, grad_loss: Tensor, grad: Tensor) -> None:
    """See op.py."""
    if inputs.target.numel() == 0:
        grad.zero_()
        return
    call = Call(inputs, grad_sums.shape[0], backward=True)
    phases = call.phases()
    tensors: dict[str, Any] = {"state": call.state()} if len(phases) > 1 else {}
    tensors |= {"grad_sums": grad_sums, "grad_loss": grad_loss}
    with on_device_of(inputs.input):
        for phase in phases:
            out = grad if phase == phases[-1] else None
            call.launch(phase, call.tiles(phase), grad=out, **tensors)
