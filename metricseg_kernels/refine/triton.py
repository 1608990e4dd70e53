"""Launchers of the Triton kernels of the refine family: see triton_kernels.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, TYPES, on_device_of
from ..engines.pixel_rows.triton import View, make_view
from .op import RefineInputs
from .triton_kernels import place, slope, spread, upsample, weigh_logits, weigh_offsets

PIXELS = 64  # of a program
CHANNELS = {
    torch.float64: 8,
    torch.float32: 16,
}  # at once, and their addresses of three cells
SLOPE_PIXELS, SLOPE_CHANNELS = 32, 8  # two sums for each value
ALONE = 256  # pixels of a program without channels
OPTIONS = {"num_warps": 4, "num_stages": 1, **FUSED}
WIDE = {**OPTIONS, "maxnreg": 255}  # else ptxas may spill for more programs


class Maps(NamedTuple):
    """Offsets, neighbor logits and the settings of a call."""

    offsets: View
    logits: View
    neighbors: Any  # compile-time, as are those that follow
    corners: Any
    zeros: Any
    integer: Any  # type that holds twice the cells times the labels of an axis


class Sizes(NamedTuple):
    """Numbers of cells, pixels and tiles."""

    h: int
    w: int
    H: int
    W: int
    N: int
    tiles: int


def make_maps(inputs: RefineInputs) -> Maps:
    flags = (inputs.neighbor_logits is not None, inputs.align_corners, inputs.zeros)
    largest = 2 * max(c * n for c, n in zip(inputs.features.shape[2:], inputs.offsets.shape[2:], strict=True))
    settings = (*flags, tl.int32 if largest < 2**31 else tl.int64)
    return Maps(make_view(inputs.offsets), make_view(inputs.neighbor_logits), *map(tl.constexpr, settings))


def make_sizes(inputs: RefineInputs, tile: int) -> Sizes:
    height, width = inputs.offsets.shape[2:]
    pixels = height * width
    cells = inputs.features.shape[2:]
    return Sizes(cells[0], cells[1], height, width, pixels, triton.cdiv(pixels, tile))


def refine_fwd_kernel(inputs: RefineInputs, output: Tensor) -> None:
    """See op.py."""
    if output.numel() == 0:
        return
    features, sizes, acc = inputs.features, make_sizes(inputs, PIXELS), accumulator(inputs.features.dtype)
    with on_device_of(features):
        upsample[(features.shape[0] * sizes.tiles,)](
            make_view(features), make_maps(inputs), make_view(output), features.shape[1], *sizes, PIXELS,
            CHANNELS[acc], TYPES[acc], **WIDE,
        )  # fmt: skip


def refine_bwd_kernel(
    inputs: RefineInputs,
    grad_output: Tensor,
    grad_features: Tensor | None,
    grad_offsets: Tensor | None,
    grad_neighbor_logits: Tensor | None,
) -> None:
    """See op.py."""
    features, maps = inputs.features, make_maps(inputs)
    (batch, channels, height, width), acc = features.shape, accumulator(features.dtype)
    sizes, alone = make_sizes(inputs, PIXELS), make_sizes(inputs, ALONE)
    with on_device_of(features):
        if grad_features is not None:
            cells = height * width
            weights = features.new_empty((batch, 6, sizes.N), dtype=acc)
            keys = features.new_empty((batch, sizes.N), dtype=torch.int32)
            place[(batch * alone.tiles,)](maps, weights, keys, *alone, ALONE, TYPES[acc], **OPTIONS)
            keys, order = keys.sort(stable=True)
            firsts = torch.arange(cells + 1, dtype=torch.int32, device=keys.device).expand(batch, -1).contiguous()
            starts = torch.searchsorted(keys, firsts)
            tiles, chunks = triton.cdiv(cells, PIXELS), triton.cdiv(channels, CHANNELS[acc])
            spread[(batch * tiles * chunks,)](
                make_view(grad_output), weights, order, starts, make_view(grad_features), channels, height, width,
                sizes.N, tiles, chunks, PIXELS, CHANNELS[acc], TYPES[acc], **WIDE,
            )  # fmt: skip
        if grad_offsets is None and grad_neighbor_logits is None:
            return
        slopes, few = features.new_empty((batch, 2, sizes.N), dtype=acc), make_sizes(inputs, SLOPE_PIXELS)
        slope[(batch * few.tiles,)](
            make_view(features), maps, make_view(grad_output), slopes, channels, *few, SLOPE_PIXELS,
            SLOPE_CHANNELS, TYPES[acc], **WIDE,
        )  # fmt: skip
        for kernel, grad in ((weigh_offsets, grad_offsets), (weigh_logits, grad_neighbor_logits)):
            if grad is not None:
                kernel[(batch * alone.tiles,)](maps, slopes, make_view(grad), *alone[2:], ALONE, TYPES[acc], **OPTIONS)
