"""Launchers of the Triton kernels of the centers family: see triton_kernels."""

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
from .means import EPS as EPS_OF_MASS
from .means import MeanOutputs
from .op import SimilarityGradInputs, SimilarityInputs
from .triton_kernels.pixels import along_pixels, gradients, log_sums, similarity, soft_gradient, spread
from .triton_kernels.rows import fold_bwd, fold_fwd, means_bwd, means_fwd, pull_mean, pull_sums

KEEPS_LOGITS = True
# Pixels of a program that walks over their classes and no channels, by accumulator.
PIXELS = {torch.float32: 128, torch.float64: 64}
PULL_PARTS, PULL_PROGRAMS = 64, 256  # of an image, and of all, at most: one program adds them


class Source(NamedTuple):
    """Inputs of A [K, N]: the gradient of logits, logits, or labels."""

    map: View
    pixels: Tensor | None  # [B, N]: norms, or log-sum-exps
    labels: View  # at which A of the features' gradient has r O too
    own: Tensor | None  # O [B, N]
    kind: Any  # compile-time: "gradient", "soft" or "hard"; last, see View


class Shares(NamedTuple):
    """Sums of parts [groups, parts, K, C], with mass [groups, parts, K] and, by labels, the lowest [groups, parts]."""

    sums: Tensor
    mass: Tensor | None
    lowest: Tensor | None


def make_source(
    maps: Tensor,
    kind: str,
    pixels: Tensor | None = None,
    labels: Tensor | None = None,
    own: Tensor | None = None,
) -> Source:
    view = make_view(widen(None if own is None else labels))
    return Source(make_view(widen(maps)), pixels, view, own, tl.constexpr(kind))


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
    batch, classes, height, width = grad_logits.shape
    wants_along = grad_features is not None and inputs.metric != "dot" and grad_features.numel() > 0
    pulls, own, along = wants_along and inputs.grad_pull is not None, None, None
    if pulls:
        own = weights.new_empty((batch, height, width))
    source = make_source(grad_logits, "gradient", inputs.norms, inputs.labels, own)
    with on_device_of(grad_logits):
        if wants_along:
            block = PIXELS[weights.dtype]
            tiles = triton.cdiv(height * width, block)
            along = weights.new_empty((batch, height, width))
            along_pixels[(batch * tiles,)](
                source, make_view(inputs.logits if inputs.metric == "cosine" else None),
                *((inputs.target_similarity, inputs.grad_pull, inputs.pull_stats) if pulls else (None,) * 3), along,
                inputs.scale, inputs.ignore_index, classes, height * width, tiles,
                BK=min(16, triton.next_power_of_2(classes)), BN=block, **FUSED,
            )  # fmt: skip
        wanted = None if grad_weights is None else (weights.shape[0], weights.shape[1])
        shares = _gradients(inputs.features, weights, source, inputs.ignore_index, along, grad_features, wanted)
        if shares is not None and grad_weights is not None:
            torch.sum(shares.sums, 1, out=grad_weights)


def pull_fwd_kernel(
    target_similarity: Tensor, labels: Tensor, scale: float, ignore_index: int, pull: Tensor, pull_stats: Tensor
) -> None:
    """See pull.py."""
    batch, classes = len(pull_stats), pull_stats.shape[1] - 1
    pixels = labels.shape[1] * labels.shape[2]
    width = 32 if classes > 16 else 16
    tiles, blocks = triton.cdiv(pixels, 128), triton.cdiv(classes, width)
    parts = max(min(tiles, PULL_PARTS, PULL_PROGRAMS // max(batch * blocks, 1)), 1)
    shares = pull.new_empty((batch, parts, 2, classes))
    lowest = labels.new_empty((batch, parts), dtype=torch.int32)
    with on_device_of(labels):
        if batch:
            pull_sums[(batch * parts * blocks,)](
                target_similarity, make_view(labels), shares, lowest, ignore_index, classes, pixels, tiles, parts,
                blocks, BK=width, BN=128, num_warps=4, **FUSED,
            )  # fmt: skip
        pull_mean[(1,)](
            shares, lowest, pull, pull_stats, batch, parts, classes, scale, BP=PULL_PARTS, BK=width,
            num_warps=8, maxnreg=255, **FUSED,
        )  # fmt: skip


def class_means_fwd_kernel(
    features: Tensor, assignment: Tensor, ignore_index: int, by_mass: bool, out: MeanOutputs
) -> None:
    """See means.py."""
    batch, classes = out.totals.shape
    channels, pixels = features.shape[1], features.shape[2] * features.shape[3]
    with on_device_of(features):
        source = _membership(assignment)
        shares = _gradients(features, None, source, ignore_index, None, None, (batch, classes), True)
        if shares is not None:
            means_fwd[(batch * classes, max(triton.cdiv(channels, 64), 1))](
                *shares, out.centers, out.kept, out.totals, out.present, shares.sums.shape[1], classes, channels,
                EPS_OF_MASS if by_mass else float(max(pixels, 1)), BY_MASS=by_mass, HARD=shares.lowest is not None,
                KEEPS=out.kept.ndim > 1, BP=16, BC=64, num_warps=4, **FUSED,
            )  # fmt: skip


def class_means_bwd_kernel(
    grad: Tensor,
    means: Tensor | None,
    totals: Tensor,
    features: Tensor,
    assignment: Tensor,
    ignore_index: int,
    grad_features: Tensor | None,
    grad_assignment: Tensor | None,
) -> None:
    """See means.py."""
    hard, channels = not assignment.is_floating_point(), features.shape[1]
    # the operands of products
    grad_sums = totals.new_empty(grad.shape, dtype=torch.bfloat16 if features.dtype == torch.bfloat16 else None)
    grad_mass = torch.empty_like(totals)
    with on_device_of(features):
        if totals.numel():
            means_bwd[(totals.numel(),)](
                grad, means, totals, grad_sums, grad_mass, channels, HARD=hard, BY_MASS=means is not None, BC=256,
                num_warps=2, **FUSED,
            )  # fmt: skip
        source = _membership(assignment)
        if grad_features is not None:
            _gradients(features, grad_sums, source, ignore_index, None, grad_features)
        if grad_assignment is not None and grad_assignment.numel():
            _soft_gradient(features, grad_sums, grad_mass, source, grad_assignment)


def _soft_gradient(
    features: Tensor, grad_sums: Tensor, grad_mass: Tensor, source: Source, grad_assignment: Tensor
) -> None:
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
    sums: tuple[int, int] | None = None,
    counted: bool = False,
) -> Shares | None:
    """T [B, C, h, w] from weights, and shares of S for so many (groups, classes), with mass if counted."""
    batch, channels, height, width = features.shape
    pixels = height * width
    hard = source.kind.value == "hard"
    groups, classes = sums or (0, 0) if weights is None else weights.shape[:2]
    more = source.own is not None or (hard and sums is not None)
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
        return None
    group_tiles = batch // groups * tiles
    parts = launch.parts(groups, group_tiles, channels)
    acc, shape = accumulator(features.dtype), (groups, parts, classes)
    shares = None
    if sums is not None:
        shares = Shares(
            features.new_empty((*shape, channels), dtype=acc),
            features.new_empty(shape, dtype=acc) if counted else None,
            features.new_empty(shape[:2], dtype=torch.int32) if counted and hard else None,
        )
    x = make_view(None if along is None and sums is None else features)
    rows = Rows(None, 0, None, None, classes, channels)
    if weights is not None and grad.data is not None:
        rows = make_rows(weights, features.dtype, kept=True)
    gradients[(chunks * groups * parts, launch.blocks)](
        x, rows, source, along, grad, *(shares or (None, None, None)), ignore_index, tiles, group_tiles, pixels, parts,
        chunks, launch.tile, STAGES=launch.shape.stages, **launch.options,
    )  # fmt: skip
    return shares


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
