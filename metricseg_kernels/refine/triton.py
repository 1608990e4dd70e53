"""Launchers of the Triton kernels of the refine family: see triton_kernels.py."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, TYPES, on_device_of
from ..engines.pixel_rows.triton import View, make_view
from .op import RefineInputs
from .triton_kernels import count_before, spread, trace, upsample, weigh

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
    features, maps, acc = inputs.features, make_maps(inputs), accumulator(inputs.features.dtype)
    channels, grad = features.shape[1], make_view(grad_output)
    places = grad_features is not None
    slopes = grad_offsets is not None or grad_neighbor_logits is not None
    pixels = SLOPE_PIXELS if slopes else ALONE
    sizes, alone = make_sizes(inputs, pixels), make_sizes(inputs, ALONE)
    batch, N = features.shape[0], sizes.N
    weights = features.new_empty((batch, 6, N), dtype=acc) if places else None
    keys = features.new_empty((batch, N), dtype=torch.int32) if places else None
    found = features.new_empty((batch, 2, N), dtype=acc) if slopes else None
    with on_device_of(features):
        trace[(batch * sizes.tiles,)](
            make_view(features), maps, grad, weights, keys, found, channels, *sizes, pixels, SLOPE_CHANNELS,
            TYPES[acc], **WIDE,
        )  # fmt: skip
        if slopes:
            weigh[(batch * alone.tiles,)](
                maps, found, make_view(grad_offsets), make_view(grad_neighbor_logits), *alone[2:], ALONE, TYPES[acc],
                **OPTIONS,
            )  # fmt: skip
        if grad_features is not None and keys is not None:
            spread_sorted(grad, weights, keys, grad_features, acc)


def spread_sorted(grad: View, weights: Tensor | None, keys: Tensor, grad_features: Tensor, acc: torch.dtype) -> None:
    """The gradient of the features from the pixels, sorted by their first cells."""
    (batch, channels, height, width), N, cells = grad_features.shape, keys.shape[1], math.prod(grad_features.shape[2:])
    keys, order = keys.sort(stable=True)
    starts = keys.new_empty((batch, cells + 1), dtype=torch.int64)
    tiles = triton.cdiv(cells + 1, ALONE)
    count_before[(batch * tiles,)](keys, starts, cells, N, tiles, N.bit_length(), ALONE, **OPTIONS)
    tiles, chunks = triton.cdiv(cells, PIXELS), triton.cdiv(channels, CHANNELS[acc])
    spread[(batch * tiles * chunks,)](
        grad, weights, order, starts, make_view(grad_features), channels, height, width, N, tiles, chunks, PIXELS,
        CHANNELS[acc], TYPES[acc], **WIDE,
    )  # fmt: skip
