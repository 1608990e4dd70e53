"""Launchers of the Triton kernels: see triton_kernels.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ..core.checks import accumulator
from ..pairwise.triton import on_device_of
from ..pairwise.triton_maps import Rows, View, make_launch, make_rows, make_view
from .triton_kernels import (
    along_pixels,
    gradients,
    log_sums,
    similarity,
    soft_gradient,
    spread,
)

PIXELS = 256  # of a program that walks over a pixel's classes and no channels


class Source(NamedTuple):
    """What A [K, N] is made of: the gradient of logits, logits, or labels."""

    map: View
    pixels: Tensor | None  # [B, N]: norms, or log-sum-exps
    labels: View | None = None  # where A of the features' gradient has r O at them too
    grad_own: View | None = None
    ignore_index: int = 0


def similarity_kernel(
    features: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    metric: str,
    scale: float,
    ignore_index: int,
    logits: Tensor,
    own: Tensor | None,
    norms: Tensor | None,
) -> None:
    """See op.py."""
    launch = make_launch(features.dtype, "P", weights.shape[1])
    pixels = features.shape[2] * features.shape[3]
    tiles = launch.tiles(pixels)
    if logits.numel() == 0:
        return
    with on_device_of(features):
        similarity[(features.shape[0] * tiles * launch.blocks,)](
            make_view(features), make_rows(weights, features.dtype),
            None if bias is None else bias.expand(features.shape[0], -1).contiguous(),
            None if labels is None else make_view(labels), scale, ignore_index, make_view(logits), own, norms,
            pixels, tiles, launch.blocks, launch.tile,
            **(launch.light if labels is None else launch.options),
        )  # fmt: skip


def similarity_grad_kernel(
    grad_logits: Tensor,
    grad_own: Tensor | None,
    features: Tensor,
    weights: Tensor,
    labels: Tensor | None,
    norms: Tensor | None,
    logits: Tensor | None,
    own: Tensor | None,
    metric: str,
    scale: float,
    ignore_index: int,
    grad_features: Tensor | None,
    grad_weights: Tensor | None,
) -> None:
    """See op.py."""
    source, along = Source(make_view(grad_logits), norms), None
    if labels is not None and grad_own is not None:
        source = source._replace(labels=make_view(labels), grad_own=make_view(grad_own), ignore_index=ignore_index)
    with on_device_of(features):
        if grad_features is not None and metric != "dot" and grad_features.numel():
            batch, classes, height, width = grad_logits.shape
            tiles = triton.cdiv(height * width, PIXELS)
            along = weights.new_empty((batch, height, width))
            along_pixels[(batch * tiles,)](
                source, make_view(logits) if metric == "cosine" and logits is not None else None,
                None if grad_own is None else own, along, scale, classes, height * width, tiles,
                BK=min(16, triton.next_power_of_2(classes)), BN=PIXELS,
            )  # fmt: skip
        _gradients(features, weights, source, "gradient", along, grad_features, grad_weights, None)


def class_sums_kernel(features: Tensor, assignment: Tensor, ignore_index: int, sums: Tensor, mass: Tensor) -> None:
    """See op.py."""
    with on_device_of(features):
        _gradients(features, None, *_membership(assignment, ignore_index), None, None, sums, mass)


def class_sums_grad_kernel(
    grad_sums: Tensor,
    grad_mass: Tensor,
    features: Tensor,
    assignment: Tensor,
    ignore_index: int,
    grad_features: Tensor | None,
    grad_assignment: Tensor | None,
) -> None:
    """See op.py."""
    with on_device_of(features):
        source, kind = _membership(assignment, ignore_index)
        if grad_features is not None:
            _gradients(features, grad_sums, source, kind, None, grad_features, None, None)
        if grad_assignment is None or grad_assignment.numel() == 0:
            return
        launch = make_launch(features.dtype, "P", grad_sums.shape[1])
        batch, pixels = features.shape[0], features.shape[2] * features.shape[3]
        tiles = launch.tiles(pixels)
        means = None
        for last in (False, True) if launch.blocks > 1 else (True,):
            shares = grad_mass.new_empty((launch.blocks, batch * pixels)) if not last else means
            soft_gradient[(batch * tiles * launch.blocks,)](
                make_view(features), make_rows(grad_sums, features.dtype), source, grad_mass, shares,
                make_view(grad_assignment), pixels, tiles, launch.blocks, batch * pixels, launch.tile, LAST=last,
                **launch.options,
            )  # fmt: skip
            means = None if shares is None else shares.sum(0)


def _membership(assignment: Tensor, ignore_index: int) -> tuple[Source, str]:
    """How labels, or logits, make A."""
    view = make_view(assignment)
    if not assignment.is_floating_point():
        return Source(view, None, ignore_index=ignore_index), "hard"
    batch, classes, height, width = assignment.shape
    pixels = height * width
    sums = assignment.new_empty((batch, pixels), dtype=accumulator(assignment.dtype))
    tiles = triton.cdiv(pixels, PIXELS)
    if sums.numel():
        log_sums[(batch * tiles,)](view, sums, classes, pixels, tiles, BK=min(16, triton.next_power_of_2(classes)),
                                   BN=PIXELS)  # fmt: skip
    return Source(view, sums), "soft"


def _gradients(
    features: Tensor,
    weights: Tensor | None,
    source: Source,
    kind: str,
    along: Tensor | None,
    grad_features: Tensor | None,
    sums: Tensor | None,
    mass: Tensor | None,
) -> None:
    """T [B, C, h, w] from weights, S [groups, K, C] and mass [groups, K], as far as asked for."""
    batch, channels, height, width = features.shape
    pixels = height * width
    table = weights if weights is not None else sums
    assert table is not None
    groups, classes = table.shape[:2]
    rows = Rows(None, 0, classes, channels) if weights is None else make_rows(weights, features.dtype)
    more = source.grad_own is not None or (kind == "hard" and sums is not None)
    launch = make_launch(features.dtype, "ST more" if more else "ST", classes)
    tiles, chunks = launch.tiles(pixels), launch.chunks(channels)
    grad = None if grad_features is None or grad_features.numel() == 0 else make_view(grad_features)
    if grad is not None and launch.blocks > 1:
        alone = make_launch(features.dtype, "T", classes)
        spread[(alone.chunks(channels) * batch * alone.tiles(pixels),)](
            None if along is None else make_view(features), rows, source, along, grad, pixels, alone.tiles(pixels),
            alone.chunks(channels), alone.tile, KIND=kind, **alone.options,
        )  # fmt: skip
        grad = None
    if (grad is None and sums is None) or groups == 0:
        return
    group_tiles = batch // groups * tiles
    parts = launch.parts(groups, group_tiles, channels)
    shares = None if sums is None else sums.new_empty((groups, parts, classes, channels))
    masses = None if mass is None else mass.new_empty((groups, parts, classes))
    x = None if along is None and sums is None else make_view(features)
    gradients[(chunks * groups * parts, launch.blocks)](
        x, rows, source, along, grad, shares, masses, tiles, group_tiles, pixels, parts, chunks, launch.tile,
        KIND=kind, STAGES=launch.shape.stages, **launch.options,
    )  # fmt: skip
    if sums is not None and shares is not None:
        torch.sum(shares, 1, out=sums)
    if mass is not None and masses is not None:
        torch.sum(masses, 1, out=mass)
