"""Class centers, from features to means, as an op with a gradient: `class_centers` after its checks.

totals are what sums are divided by. They are NaN in an image with a label out of range: its means are NaN, and its
gradient is 0. kept are the means in the accumulator dtype; empty if that is the features', or if backward needs none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import checks
from ..core.gradient import empty_gradient
from ..core.labels import check_labels
from ..core.library import define_op, ops
from . import op

EPS = 1e-6  # pixels, added to the mass of a class


class MeanOutputs(NamedTuple):
    """Outputs of the forward op, as the schema has them."""

    centers: Tensor  # [B, K, C]
    kept: Tensor  # [B, K, C] or empty
    totals: Tensor  # [B, K]
    present: Tensor  # [B, K]


def finish_means(sums: Tensor, mass: Tensor, pixels: int, by_mass: bool, out: MeanOutputs) -> None:
    """Fill the outputs from sums [B, K, C] and mass [B, K], in plain PyTorch."""
    out.totals.copy_(mass + EPS if by_mass else torch.full_like(mass, max(pixels, 1)))
    means = sums / out.totals[..., None]
    out.centers.copy_(means)
    if out.kept.ndim > 1:
        out.kept.copy_(means)
    torch.gt(mass, 0, out=out.present)


def sums_gradient(grad: Tensor, means: Tensor | None, totals: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of sums [B, K, C], contiguous, and of mass [B, K], in plain PyTorch. means: if mass divides."""
    grad, total = grad.to(totals.dtype), totals[..., None]
    if means is None:
        return grad / total, torch.zeros_like(totals)
    return grad / total, (-grad * (means / total)).sum(-1)


def _keeps(features: Tensor, assignment: Tensor, by_mass: bool) -> bool:
    """Whether backward needs the means in another dtype than that of features."""
    return by_mass and assignment.is_floating_point() and features.dtype != checks.accumulator(features.dtype)


def _outputs(features: Tensor, assignment: Tensor, classes: int, by_mass: bool) -> MeanOutputs:
    batch, channels, acc = *features.shape[:2], checks.accumulator(features.dtype)
    size = (batch, classes, channels)
    return MeanOutputs(
        features.new_empty(size),
        features.new_empty(size if _keeps(features, assignment, by_mass) else (0,), dtype=acc),
        features.new_empty((batch, classes), dtype=acc),
        features.new_empty((batch, classes), dtype=torch.bool),
    )


def _forward(
    features: Tensor, assignment: Tensor, classes: int, ignore_index: int, by_mass: bool, name: str, backend: str
) -> MeanOutputs:
    if not assignment.is_floating_point():
        check_labels(assignment, classes, ignore_index, name)
    out = _outputs(features, assignment, classes, by_mass)
    op.kernels(backend).class_means_fwd_kernel(features, assignment, ignore_index, by_mass, out)
    return out


def _grad_outputs(
    features: Tensor, assignment: Tensor, with_features: bool, with_assignment: bool
) -> tuple[Tensor, Tensor]:
    grad_features = empty_gradient(features) if with_features else features.new_empty((0,))
    return grad_features, empty_gradient(assignment) if with_assignment else assignment.new_empty((0,))


def _backward(
    grad: Tensor, means: Tensor | None, totals: Tensor, features: Tensor, assignment: Tensor, ignore_index: int,
    with_features: bool, with_assignment: bool, backend: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    gradients = _grad_outputs(features, assignment, with_features, with_assignment)
    op.kernels(backend).class_means_bwd_kernel(
        grad.contiguous(), means, totals, features, assignment, ignore_index, *map(op.none_if_empty, gradients)
    )
    return gradients


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    features, assignment, _, ctx.ignore_index, by_mass, _, ctx.backend = inputs
    out = MeanOutputs(*output)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*out[1:])
    means = None
    if by_mass and assignment.is_floating_point():
        means = out.kept if _keeps(features, assignment, by_mass) else out.centers
    ctx.save_for_backward(means, out.totals, features, assignment)


def _autograd(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 7
    wanted = ctx.needs_input_grad[:2]
    gradients = ops.class_means_bwd(grad, *ctx.saved_tensors, ctx.ignore_index, *wanted, ctx.backend)
    return *(g if w else None for g, w in zip(gradients, wanted, strict=True)), *(None,) * 5


define_op(
    "class_means_fwd(Tensor features, Tensor assignment, int num_classes, int ignore_index, bool by_mass, str name, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    lambda features, assignment, classes, _, by_mass, *__: _outputs(features, assignment, classes, by_mass),
    _setup,
    _autograd,
)
define_op(
    "class_means_bwd(Tensor grad, Tensor? means, Tensor totals, Tensor features, Tensor assignment, int ignore_index, "
    "bool with_features, bool with_assignment, str backend) -> (Tensor, Tensor)",
    _backward,
    lambda _, __, ___, features, assignment, ____, *rest: _grad_outputs(features, assignment, *rest[:2]),
)
