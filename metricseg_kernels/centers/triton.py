"""Launchers of the Triton kernels of the centers family: see triton_kernels.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import FUSED, on_device_of
from ..core.unit import EPS
from ..engines.pixel_rows.triton import Rows, View, make_launch, make_rows, make_view, widen
from .op import SimilarityGradInputs, SimilarityInputs
from .triton_kernels import (
    along_pixels,
    fold_bwd,
    fold_fwd,
    gradients,
    log_sums,
    similarity,
    soft_gradient,
    spread,
)

KEEPS_LOGITS = True
# Pixels of a program that walks over their classes and no channels, by accumulator.
PIXELS = {torch.float32: 128, torch.float64: 64}


class Source(NamedTuple):
    """Inputs of A [K, N]: the gradient of logits, logits, or labels."""

    map: View
    pixels: Tensor | None  # [B, N]: norms, or log-sum-exps
    labels: View  # at which A of the features' gradient has r O too
    grad_target: View
    kind: Any  # compile-time: "gradient", "soft" or "hard"; last, see View


def make_source(
    maps: Tensor,
    kind: str,
    pixels: Tensor | None = None,
    labels: Tensor | None = None,
    grad_target: Tensor | None = None,
) -> Source:
    if labels is None or grad_target is None:
        labels = grad_target = None
    return Source(make_view(widen(maps)), pixels, make_view(widen(labels)), make_view(grad_target), tl.constexpr(kind))


def similarity_fwd_kernel(
    inputs: SimilarityInputs, logits: Tensor, target_similarity: Tensor | None, norms: Tensor | None
) -> None:
    """See op.py."""
    if logits.numel() == 0:
        return
    features, weights, bias, labels, _, scale, ignore_index = inputs
    pixels = features.shape[2] * features.shape[3]
    with on_device_of(features):
        launch = make_launch(features, "P" if labels is None else "P more", weights.shape[1])
        tiles = launch.tiles(pixels)
        similarity[(features.shape[0] * tiles * launch.blocks,)](
            make_view(features), make_rows(weights, features.dtype),
            None if bias is None else bias.expand(features.shape[0], -1).contiguous(),
            make_view(labels), scale, ignore_index, make_view(logits), target_similarity, norms,
            pixels, tiles, launch.blocks, launch.tile, **launch.options,
        )  # fmt: skip


def similarity_bwd_kernel(
    inputs: SimilarityGradInputs, grad_features: Tensor | None, grad_weights: Tensor | None
) -> None:
    """See op.py."""
    grad_logits, weights = inputs.grad_logits, inputs.weights
    target = inputs.grad_target_similarity
    source, along = make_source(grad_logits, "gradient", inputs.norms, inputs.labels, target), None
    with on_device_of(grad_logits):
        if grad_features is not None and inputs.metric != "dot" and grad_features.numel():
            batch, classes, height, width = grad_logits.shape
            block = PIXELS[weights.dtype]
            tiles = triton.cdiv(height * width, block)
            along = weights.new_empty((batch, height, width))
            along_pixels[(batch * tiles,)](
                source, make_view(inputs.logits if inputs.metric == "cosine" else None),
                None if target is None else inputs.target_similarity, along,
                inputs.scale, inputs.ignore_index, classes, height * width, tiles,
                BK=min(16, triton.next_power_of_2(classes)), BN=block, **FUSED,
            )  # fmt: skip
        _gradients(inputs.features, weights, source, inputs.ignore_index, along, grad_features, grad_weights, None)


def class_sums_fwd_kernel(features: Tensor, assignment: Tensor, ignore_index: int, sums: Tensor, mass: Tensor) -> None:
    """See op.py."""
    with on_device_of(features):
        _gradients(features, None, _membership(assignment), ignore_index, None, None, sums, mass)


def class_sums_bwd_kernel(
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
        source = _membership(assignment)
        if grad_features is not None:
            _gradients(features, grad_sums, source, ignore_index, None, grad_features, None, None)
        if grad_assignment is None or grad_assignment.numel() == 0:
            return
        launch = make_launch(features, "P soft", grad_sums.shape[1])
        batch, pixels = features.shape[0], features.shape[2] * features.shape[3]
        tiles = launch.tiles(pixels)
        means = None if launch.blocks == 1 else grad_mass.new_empty((launch.blocks, batch * pixels))
        for kind in ("only",) if means is None else ("first", "second"):
            if means is not None and kind == "second":
                means = means.sum(0)
            soft_gradient[(batch * tiles * launch.blocks,)](
                make_view(features), make_rows(grad_sums, features.dtype), source, grad_mass, means,
                make_view(grad_assignment), pixels, tiles, launch.blocks, batch * pixels, launch.tile, PASS=kind,
                **launch.options,
            )  # fmt: skip


def _membership(assignment: Tensor) -> Source:
    """The source of A for labels, or for logits."""
    if not assignment.is_floating_point():
        return make_source(assignment, "hard")
    batch, classes, height, width = assignment.shape
    pixels = height * width
    sums = assignment.new_empty((batch, pixels), dtype=accumulator(assignment.dtype))
    block = PIXELS[sums.dtype]
    tiles = triton.cdiv(pixels, block)
    if sums.numel():
        log_sums[(batch * tiles,)](
            make_view(assignment), sums, classes, pixels, tiles,
            BK=min(16, triton.next_power_of_2(classes)), BN=block, **FUSED,
        )  # fmt: skip
    return make_source(assignment, "soft", sums)


def _gradients(
    features: Tensor,
    weights: Tensor | None,
    source: Source,
    ignore_index: int,
    along: Tensor | None,
    grad_features: Tensor | None,
    sums: Tensor | None,
    mass: Tensor | None,
) -> None:
    """T [B, C, h, w] from weights, S [groups, K, C] and mass [groups, K], those that are not None."""
    batch, channels, height, width = features.shape
    pixels = height * width
    table = weights if weights is not None else sums
    assert table is not None
    groups, classes = table.shape[:2]
    more = source.grad_target.data is not None or (source.kind.value == "hard" and sums is not None)
    launch = make_launch(features, "ST more" if more else "ST", classes)
    tiles, chunks = launch.tiles(pixels), launch.chunks(channels)
    grad = make_view(None if grad_features is None or grad_features.numel() == 0 else grad_features)
    if weights is not None and grad.data is not None and launch.blocks > 1:
        alone = make_launch(features, "T", classes)
        spread[(alone.chunks(channels) * batch * alone.tiles(pixels),)](
            make_view(None if along is None else features), make_rows(weights, features.dtype), source, along, grad,
            ignore_index, pixels, alone.tiles(pixels), alone.chunks(channels), alone.tile, **alone.options,
        )  # fmt: skip
        grad = make_view(None)
    if (grad.data is None and sums is None) or groups == 0:
        return
    group_tiles = batch // groups * tiles
    parts = launch.parts(groups, group_tiles, channels)
    shares = None if sums is None else sums.new_empty((groups, parts, classes, channels))
    masses = None if mass is None else mass.new_empty((groups, parts, classes))
    x = make_view(None if along is None and sums is None else features)
    rows = Rows(None, 0, None, None, classes, channels)
    if weights is not None and grad.data is not None:
        rows = make_rows(weights, features.dtype, kept=True)
    gradients[(chunks * groups * parts, launch.blocks)](
        x, rows, source, along, grad, shares, masses, ignore_index, tiles, group_tiles, pixels, parts, chunks,
        launch.tile, STAGES=launch.shape.stages, **launch.options,
    )  # fmt: skip
    if sums is not None and shares is not None:
        torch.sum(shares, 1, out=sums)
    if mass is not None and masses is not None:
        torch.sum(masses, 1, out=mass)


def fold_centers_fwd_kernel(centers: Tensor, metric: str, scale: float, weights: Tensor, bias: Tensor) -> None:
    """See folding.py."""
    rows = weights.shape[0] * weights.shape[1]
    if rows:
        with on_device_of(centers):
            fold_fwd[(rows,)](centers, weights, bias, weights.shape[2], scale, **_fold_options(metric, centers))


def fold_centers_bwd_kernel(
    grad_weights: Tensor, grad_bias: Tensor | None, centers: Tensor, metric: str, scale: float, grad: Tensor
) -> None:
    """See folding.py."""
    rows = grad_weights.shape[0] * grad_weights.shape[1]
    if rows:
        with on_device_of(centers):
            fold_bwd[(rows,)](
                grad_weights, grad_bias, centers, grad, centers.shape[-1], scale, WITH_BIAS=grad_bias is not None,
                **_fold_options(metric, centers),
            )  # fmt: skip


def _fold_options(metric: str, centers: Tensor) -> dict[str, Any]:
    block = triton.next_power_of_2(max(centers.shape[-1], 1))
    return {"METRIC": metric, "LEAST": EPS, "BLOCK": block, "num_warps": min(max(block // 256, 1), 8), **FUSED}
