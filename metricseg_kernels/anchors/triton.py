"""Launchers of the Triton kernels of the anchors family: see triton_kernels.py."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, TYPES, on_device_of
from ..engines.pixel_rows.triton import make_view
from .triton_kernels import collect, count_cells, gather, place, plan, repair, scatter

# Of a program, by calculation: lanes of `count_cells` and their pixels, slots, pixels, candidates against candidates.
LANES, RUN, SLOTS, PIXELS, CANDIDATES = 128, 16, 1024, 512, 64
CHANNELS = 256
MOST_PARTS = 64  # programs that share the candidates of a cell
DEVIATIONS = 6.0  # of slack in the limits: speed, not results
LEAST = -(2**63)


def capacity(rows: int, cells: int = 1) -> int:
    """Return how many candidates cells with so many rows in all have room for."""
    return 2 * rows + 96 * cells


def sample_anchors_kernel(
    labels: Tensor,
    first: Tensor | None,
    seed: Tensor,
    max_samples: int,
    max_views: int,
    min_pixels: int,
    half: bool,
    num_classes: int,
    ignore_index: int,
    ignore_label: int,
    index: Tensor,
    sampled: Tensor,
    count: Tensor,
    bad: Tensor,
) -> None:
    """See op.py. Two fills and five launches."""
    batch, pixels, slots = labels.shape[0], labels.shape[1] * labels.shape[2], labels.shape[0] * num_classes
    most = max(min(2 * slots, max_samples), 1)
    have = labels.new_zeros(2 * slots, dtype=torch.int32)
    rank, found = torch.empty_like(have), have.new_empty(most)
    chosen, used = bad.new_empty((most, 4)), bad.new_empty(1)
    candidates = bad.new_empty((capacity(max_samples, most), 2))
    bad.fill_(LEAST)
    maps = make_view(labels), make_view(first)
    sizes = ignore_index, num_classes, pixels
    with on_device_of(labels):
        if labels.numel():
            tiles = triton.cdiv(pixels, LANES * RUN)
            count_cells[(batch * tiles,)](*maps, have, bad, *sizes, tiles, BN=LANES, RUN=RUN, num_warps=4, **FUSED)
        plan[(1,)](
            seed, have, bad, rank, chosen, found, used, index, sampled, count, slots, max_samples, max_views,
            min_pixels, ignore_label, DEVIATIONS, HALF=half, BLOCK=SLOTS, num_warps=8, **FUSED,
        )  # fmt: skip
        if labels.numel() == 0:
            return
        tiles = triton.cdiv(pixels, PIXELS)
        collect[(batch * tiles,)](
            *maps, seed, rank, chosen, found, candidates, *sizes, tiles, BN=PIXELS, num_warps=4, **FUSED
        )
        repair[(most,)](*maps, seed, chosen, found, used, candidates, *sizes, BN=PIXELS, num_warps=4, **FUSED)
        parts = min(max(triton.cdiv(capacity(min(max_samples, max_views)), CANDIDATES), 1), MOST_PARTS)
        place[(most * parts,)](
            chosen, found, used, candidates, index, sampled, num_classes, parts, BC=CANDIDATES, num_warps=4, **FUSED
        )


def gather_pixels_fwd_kernel(
    features: Tensor, index: Tensor, normalize: bool, eps: float, rows: Tensor, norms: Tensor
) -> None:
    """See op.py."""
    batch, channels, height, width = features.shape
    if len(index):
        with on_device_of(features):
            gather[(len(index),)](
                make_view(features), index, rows, norms, channels, height * width, batch * height * width, EPS=eps,
                NORMALIZE=normalize, BC=block(channels), ACC=TYPES[accumulator(features.dtype)], num_warps=4, **FUSED,
            )  # fmt: skip


def gather_pixels_bwd_kernel(
    grad_rows: Tensor, rows: Tensor, norms: Tensor, index: Tensor, order: Tensor, normalize: bool, eps: float,
    grad: Tensor,
) -> None:  # fmt: skip
    """See op.py."""
    batch, channels, height, width = grad.shape
    grad.zero_()
    if len(index):
        with on_device_of(grad):
            scatter[(len(index),)](
                grad_rows, *grad_rows.stride(), rows, norms, index, order, make_view(grad), len(index), channels,
                height * width, batch * height * width, EPS=eps, NORMALIZE=normalize, BC=block(channels),
                ACC=TYPES[accumulator(grad.dtype)], num_warps=4, **FUSED,
            )  # fmt: skip


def block(channels: int) -> int:
    """Channels that a program reads at once."""
    return min(max(triton.next_power_of_2(channels), 16), CHANNELS)
