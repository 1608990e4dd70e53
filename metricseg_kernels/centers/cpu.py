"""CPU kernels of the centers family, in the extension (csrc/centers); sums by label are the engine's."""

from __future__ import annotations

from torch import Tensor

from ..core.library import define_kernel, ops
from ..core.unit import EPS
from ..engines.pixel_rows.cpu import label_sums_bwd, label_sums_fwd

KEEPS_LOGITS = False

define_kernel(
    "similarity_fwd_kernel(Tensor features, Tensor weights, Tensor? bias, Tensor? labels, str metric, float scale, "
    "int ignore_index, float eps, Tensor(a!) logits, Tensor(b!)? own, Tensor(c!)? norms) -> ()"
)
define_kernel(
    "similarity_bwd_kernel(Tensor grad_logits, Tensor? grad_own, Tensor features, Tensor weights, Tensor? labels, "
    "Tensor? norms, str metric, float scale, int ignore_index, float eps, Tensor(a!)? grad_features, "
    "Tensor(b!)? grad_weights) -> ()"
)
define_kernel("soft_sums_fwd_kernel(Tensor features, Tensor logits, Tensor(a!) sums, Tensor(b!) mass) -> ()")
define_kernel(
    "soft_sums_bwd_kernel(Tensor grad_sums, Tensor grad_mass, Tensor features, Tensor logits, "
    "Tensor(a!)? grad_features, Tensor(b!)? grad_logits) -> ()"
)


def similarity_fwd_kernel(
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
    bias = None if bias is None else bias.contiguous()
    ops.similarity_fwd_kernel(features, weights, bias, labels, metric, scale, ignore_index, EPS, logits, own, norms)


def similarity_bwd_kernel(
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
    ops.similarity_bwd_kernel(
        grad_logits, grad_own, features, weights, labels, norms, metric, scale, ignore_index, EPS,
        grad_features, grad_weights,
    )  # fmt: skip


def class_sums_fwd_kernel(features: Tensor, assignment: Tensor, ignore_index: int, sums: Tensor, mass: Tensor) -> None:
    """See op.py."""
    if assignment.is_floating_point():
        ops.soft_sums_fwd_kernel(features, assignment, sums, mass)
    else:
        label_sums_fwd(features, assignment, ignore_index, sums, mass)


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
    if assignment.is_floating_point():
        ops.soft_sums_bwd_kernel(grad_sums, grad_mass, features, assignment, grad_features, grad_assignment)
    elif grad_features is not None:
        label_sums_bwd(grad_sums, assignment, ignore_index, grad_features)
