"""CUDA kernels of the centers family, in the extension (csrc/centers)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.library import define_kernel, ops
from ..core.unit import EPS
from .means import EPS as EPS_OF_MASS
from .means import MeanOutputs
from .op import SimilarityGradInputs, SimilarityInputs, none_if_empty

KEEPS_LOGITS = True

define_kernel(
    "pixel_similarity_fwd_kernel(Tensor features, Tensor weights, Tensor? bias, Tensor? labels, str metric, "
    "float scale, int ignore_index, float eps, bool exact, Tensor(a!) logits, Tensor(b!)? target_similarity, "
    "Tensor(c!)? norms) -> ()"
)
define_kernel(
    "pixel_similarity_bwd_kernel(Tensor grad_logits, Tensor? grad_pull, Tensor? pull_stats, Tensor features, "
    "Tensor weights, Tensor? labels, Tensor? norms, str metric, float scale, int ignore_index, float eps, bool exact, "
    "Tensor? logits, Tensor? target_similarity, Tensor(a!)? grad_features, Tensor(b!)? grad_weights) -> ()"
)
define_kernel(
    "center_pull_fwd_kernel(Tensor target_similarity, Tensor labels, float scale, int ignore_index, Tensor(a!) pull, "
    "Tensor(b!) pull_stats) -> ()"
)
define_kernel(
    "soft_class_means_fwd_kernel(Tensor features, Tensor logits, bool exact, float least, bool by_mass, "
    "Tensor(a!) centers, Tensor(b!)? kept, Tensor(c!) totals, Tensor(d!) present) -> ()"
)
define_kernel(
    "soft_class_means_bwd_kernel(Tensor grad, Tensor? means, Tensor totals, Tensor features, Tensor logits, "
    "bool exact, Tensor(a!)? grad_features, Tensor(b!)? grad_logits) -> ()"
)
define_kernel(
    "hard_class_means_fwd_kernel(Tensor features, Tensor labels, int ignore_index, float least, bool by_mass, "
    "Tensor(a!) centers, Tensor(b!) totals, Tensor(c!) present) -> ()"
)
define_kernel(
    "hard_class_means_bwd_kernel(Tensor grad, Tensor totals, Tensor labels, int ignore_index, "
    "Tensor(a!) grad_features) -> ()"
)
define_kernel(
    "fold_rows_fwd_kernel(Tensor centers, str metric, float scale, float eps, Tensor(a!) weights, Tensor(b!)? bias) "
    "-> ()"
)
define_kernel(
    "fold_rows_bwd_kernel(Tensor grad_weights, Tensor? grad_bias, Tensor centers, str metric, float scale, float eps, "
    "Tensor(a!) grad) -> ()"
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


def pull_fwd_kernel(
    target_similarity: Tensor, labels: Tensor, scale: float, ignore_index: int, pull: Tensor, pull_stats: Tensor
) -> None:
    """See pull.py."""
    ops.center_pull_fwd_kernel(target_similarity, labels, scale, ignore_index, pull, pull_stats)


def class_means_fwd_kernel(
    features: Tensor, assignment: Tensor, ignore_index: int, by_mass: bool, out: MeanOutputs
) -> None:
    """See means.py."""
    least = EPS_OF_MASS if by_mass else float(max(features.shape[2] * features.shape[3], 1))
    centers, kept, totals, present = out
    if assignment.is_floating_point():
        ops.soft_class_means_fwd_kernel(
            features, assignment, _exact(), least, by_mass, centers, none_if_empty(kept), totals, present
        )
    else:
        ops.hard_class_means_fwd_kernel(features, assignment, ignore_index, least, by_mass, centers, totals, present)


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
    if assignment.is_floating_point():
        ops.soft_class_means_bwd_kernel(
            grad, means, totals, features, assignment, _exact(), grad_features, grad_assignment
        )
    elif grad_features is not None:
        ops.hard_class_means_bwd_kernel(grad, totals, assignment, ignore_index, grad_features)


def fold_centers_fwd_kernel(centers: Tensor, metric: str, scale: float, weights: Tensor, bias: Tensor) -> None:
    """See folding.py."""
    ops.fold_rows_fwd_kernel(centers, metric, scale, EPS, weights, none_if_empty(bias))


def fold_centers_bwd_kernel(
    grad_weights: Tensor, grad_bias: Tensor | None, centers: Tensor, metric: str, scale: float, grad: Tensor
) -> None:
    """See folding.py."""
    ops.fold_rows_bwd_kernel(grad_weights, grad_bias, centers, metric, scale, EPS, grad)
