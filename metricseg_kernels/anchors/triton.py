"""Launchers of the Triton kernels of the anchors family: see triton_kernels.py."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, TYPES, on_device_of
from ..engines.pixel_rows.triton import make_view
from .op import Sampled
from .reference import SAMPLE_COUNTS, SampleInputs
from .triton_kernels import collect, count_cells, gather, place, plan, scatter

# Of a program, by calculation: lanes of `count_cells` and their pixels, slots, pixels, candidates against candidates.
LANES, RUN, SLOTS, PIXELS, CANDIDATES = 128, 16, 1024, 512, 64
CHANNELS = 256
MOST_PARTS = 64  # programs that share the candidates of a cell
DEVIATIONS = 6.0  # of slack in the limits: speed, not results


def capacity(rows: int, cells: int = 1) -> int:
    """Return how many candidates cells with so many rows in all have room for."""
    return 2 * rows + 96 * cells


def sample_anchors_kernel(inputs: SampleInputs, found: Sampled) -> None:
    """See op.py. A fill and four launches."""
    labels, max_samples, num_classes = inputs.labels, inputs.max_samples, inputs.num_classes
    batch, pixels, slots = labels.shape[0], labels.shape[1] * labels.shape[2], labels.shape[0] * num_classes
    most = max(min(2 * slots, max_samples), 1)
    zeros = labels.new_zeros(SAMPLE_COUNTS + slots, dtype=torch.int64)
    bad, have = zeros[:SAMPLE_COUNTS], zeros[SAMPLE_COUNTS:].view(torch.int32)  # [2], [2 slots]
    rank, hits = torch.empty_like(have), have.new_empty(most)
    chosen, used = bad.new_empty((most, 4)), bad.new_empty(1)
    candidates = bad.new_empty((capacity(max_samples, most), 2))
    maps = make_view(labels), make_view(inputs.predictions), make_view(inputs.first)
    sizes = inputs.ignore_index, num_classes, pixels
    with on_device_of(labels):
        if labels.numel():
            tiles = triton.cdiv(pixels, LANES * RUN)
            count_cells[(batch * tiles,)](*maps, have, bad, *sizes, tiles, BN=LANES, RUN=RUN, num_warps=4, **FUSED)
        plan[(1,)](
            inputs.seed, have, bad, rank, chosen, hits, used, found, slots, max_samples, inputs.max_views,
            inputs.min_pixels, inputs.ignore_label, DEVIATIONS, HALF=inputs.half, BLOCK=SLOTS, num_warps=8, **FUSED,
        )  # fmt: skip
        if labels.numel() == 0:
            return
        tiles = triton.cdiv(pixels, PIXELS)
        collect[(batch * tiles,)](
            *maps, inputs.seed, rank, chosen, hits, candidates, *sizes, tiles, BN=PIXELS, num_warps=4, **FUSED
        )
        parts = min(max(triton.cdiv(capacity(min(max_samples, inputs.max_views)), CANDIDATES), 1), MOST_PARTS)
        place[(most * parts,)](
            *maps, inputs.seed, chosen, hits, used, candidates, found, *sizes, parts, BN=PIXELS, BC=CANDIDATES,
            num_warps=4, **FUSED,
        )  # fmt: skip


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
