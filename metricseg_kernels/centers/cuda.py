"""CUDA kernels of the centers family, in the extension (csrc/centers)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.library import define_kernel, ops
from ..core.unit import EPS
from .folding import fold_gradient, fold_weights
from .op import SimilarityGradInputs, SimilarityInputs

KEEPS_LOGITS = True

define_kernel(
    "pixel_similarity_fwd_kernel(Tensor features, Tensor weights, Tensor? bias, Tensor? labels, str metric, "
    "float scale, int ignore_index, float eps, bool exact, Tensor(a!) logits, Tensor(b!)? target_similarity, "
    "Tensor(c!)? norms) -> ()"
)
define_kernel(
    "pixel_similarity_bwd_kernel(Tensor grad_logits, Tensor? grad_target_similarity, Tensor features, Tensor weights, "
    "Tensor? labels, Tensor? norms, str metric, float scale, int ignore_index, float eps, bool exact, Tensor? logits, "
    "Tensor? target_similarity, Tensor(a!)? grad_features, Tensor(b!)? grad_weights) -> ()"
)
define_kernel(
    "soft_class_sums_fwd_kernel(Tensor features, Tensor logits, bool exact, Tensor(a!) sums, Tensor(b!) mass) -> ()"
)
define_kernel(
    "soft_class_sums_bwd_kernel(Tensor grad_sums, Tensor grad_mass, Tensor features, Tensor logits, bool exact, "
    "Tensor(a!)? grad_features, Tensor(b!)? grad_logits) -> ()"
)
define_kernel(
    "hard_class_sums_fwd_kernel(Tensor features, Tensor labels, int ignore_index, Tensor(a!) sums, Tensor(b!) mass) "
    "-> ()"
)
define_kernel(
    "hard_class_sums_bwd_kernel(Tensor grad_sums, Tensor labels, int ignore_index, Tensor(a!) grad_features) -> ()"
)


def _exact() -> bool:
    """Whether products of fp32 maps are in fp32, not in tf32."""
    return torch.get_float32_matmul_precision() == "highest"


def similarity_fwd_kernel(
    inputs: SimilarityInputs, logits: Tensor, target_similarity: Tensor | None, norms: Tensor | None
) -> None:
    """See op.py."""
    features, weights, bias, *rest = inputs
    bias = None if bias is None else bias.contiguous()
    ops.pixel_similarity_fwd_kernel(
        features, weights.contiguous(), bias, *rest, EPS, _exact(), logits, target_similarity, norms
    )


def similarity_bwd_kernel(
    inputs: SimilarityGradInputs, grad_features: Tensor | None, grad_weights: Tensor | None
) -> None:
    """See op.py."""
    *needed, logits, target_similarity = inputs._replace(weights=inputs.weights.contiguous())
    ops.pixel_similarity_bwd_kernel(*needed, EPS, _exact(), logits, target_similarity, grad_features, grad_weights)


def class_sums_fwd_kernel(features: Tensor, assignment: Tensor, ignore_index: int, sums: Tensor, mass: Tensor) -> None:
    """See op.py."""
    if assignment.is_floating_point():
        ops.soft_class_sums_fwd_kernel(features, assignment, _exact(), sums, mass)
    else:
        ops.hard_class_sums_fwd_kernel(features, assignment, ignore_index, sums, mass)


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
        ops.soft_class_sums_bwd_kernel(
            grad_sums, grad_mass, features, assignment, _exact(), grad_features, grad_assignment
        )
    elif grad_features is not None:
        ops.hard_class_sums_bwd_kernel(grad_sums, assignment, ignore_index, grad_features)


fold_centers_fwd_kernel, fold_centers_bwd_kernel = fold_weights, fold_gradient
