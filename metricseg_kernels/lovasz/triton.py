"""Launchers of the lovasz family's Triton kernels: one to three walks, and in forward the end of the histogram."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, cdiv, disguised, on_device_of
from ..engines.resized.triton import Limits, Numbers, Tiles, launch_walk, make_axes, make_tiles, narrow
from .op import Inputs
from .triton_kernels.bins import Histogram, finish
from .triton_kernels.epilogues import EPILOGUE, Form, Tensors

# A lane holds per class, beyond the two rows of logits, the exponentials; in backward also two rows of gradient and
# dL/dp.
LIMITS = {
    "forward softmax": Limits(64, 20),
    "forward statistics": Limits(20, 20),
    "forward chunk": Limits(20, 20),
    "backward softmax": Limits(64, 20),
    "backward statistics": Limits(20, 20),
    "backward dots": Limits(16, 16),
    "backward chunk": Limits(16, 16),
}
SPANS = {"softmax": "whole", "statistics": "sweep", "dots": "sweep", "chunk": "chunk"}
DIGITS = {torch.float32: 30, torch.float64: 52}  # bits of an error, of which those of its bin are some
COPIES = 8  # of the histogram, which programs add to in turn
MOST_BYTES = 2**25  # of a histogram with more than one copy
ENTRIES = 512  # of the histogram in a program of `finish`
SUMMED_ROWS = 256  # of partial sums at once


class Call:
    """A call of the op: what its walks share."""

    def __init__(self, inputs: Inputs, shape: torch.Size, backward: bool) -> None:
        self.inputs, self.backward = inputs, backward
        self.images, self.classes, _, self.bins = shape
        self.acc = accumulator(inputs.input.dtype)
        self.axes = make_axes(inputs.input, inputs.target, inputs.align_corners)

    def limits(self, phase: str) -> Limits:
        return narrow(LIMITS[f"{'backward' if self.backward else 'forward'} {phase}"], self.acc)

    def phases(self) -> tuple[str, ...]:
        """The walks of the call."""
        if self.classes <= self.limits("softmax").chunk:
            return ("softmax",)
        return ("statistics", "dots", "chunk") if self.backward else ("statistics", "chunk")

    def tiles(self, phase: str) -> Tiles:
        with_grad = self.backward and phase in ("softmax", "chunk")
        return make_tiles(self.limits(phase), self.inputs.input.shape[0], self.classes, *self.axes, with_grad)

    def state(self) -> tuple[Tensor, ...]:
        """Memory for the statistics of each pixel: tensors [B, H, W]."""
        shape = self.inputs.target.shape
        return tuple(self.inputs.input.new_empty(shape, dtype=self.acc) for _ in range(3 + self.backward))

    def launch(self, phase: str, tiles: Tiles, **tensors: Any) -> None:
        inputs = self.inputs
        form = Form(PHASE=phase, BACKWARD=self.backward, PER_IMAGE=self.images != 1)
        io = Tensors(inputs.input, inputs.target, disguised(self.bins), **tensors)
        launch_walk(io, EPILOGUE, form, SPANS[phase], tiles, self.axes, Numbers(inputs.ignore_index))


def layout(pixels: int, bins: int, acc: torch.dtype) -> tuple[int, int]:
    """(F, SHIFT) of a set of pixels, see triton_kernels/bins.py: neither the counts nor the sums of places overflow."""
    bits = pixels.bit_length()
    if bits > 32:
        raise ValueError(f"the pixels of a set must be less than 2^32, got {pixels}: use per_image")
    fraction = min(DIGITS[acc] - (bins - 1).bit_length(), 64 - 2 * bits)
    return fraction, fraction + bits


def lovasz_fwd_kernel(inputs: Inputs, counts: Tensor, sums: Tensor, totals: Tensor) -> None:
    """See op.py."""
    if inputs.target.numel() == 0:
        for out in (counts, sums, totals):
            out.zero_()
        return
    call = Call(inputs, counts.shape, backward=False)
    images, entries = call.images, counts[0].numel()
    fraction, shift = layout(inputs.target.numel() // images, call.bins, call.acc)
    copies = COPIES
    while copies > 1 and 8 * copies * counts.numel() > MOST_BYTES:
        copies //= 2
    packed = counts.new_zeros((images, copies, entries), dtype=torch.int64)
    phases = call.phases()
    tensors: dict[str, Any] = {"histogram": Histogram(packed, *map(disguised, (fraction, shift, copies)))}
    if len(phases) > 1:
        tensors["state"] = call.state()
    with on_device_of(inputs.input):
        rows = 0
        for phase in phases:
            tiles = call.tiles(phase)
            if phase == phases[0]:
                rows = tiles.programs * tiles.parts
                extras = counts.new_empty((rows, 4))
            call.launch(phase, tiles, extras=extras if phase == phases[0] else None, **tensors)
        finish[cdiv(entries, ENTRIES) + 1, images](
            packed, extras, counts, sums, totals, entries, rows // images, call.bins, fraction, shift, copies,
            ENTRIES=ENTRIES, ROWS=SUMMED_ROWS, num_warps=4, **FUSED,
        )  # fmt: skip


def lovasz_bwd_kernel(inputs: Inputs, table: Tensor, grad: Tensor) -> None:
    """See op.py."""
    if inputs.target.numel() == 0:
        grad.zero_()
        return
    call = Call(inputs, table.shape, backward=True)
    phases = call.phases()
    tensors: dict[str, Any] = {"table": table}
    if len(phases) > 1:
        tensors["state"] = call.state()
    with on_device_of(inputs.input):
        for phase in phases:
            call.launch(phase, call.tiles(phase), grad=grad if phase == phases[-1] else None, **tensors)
