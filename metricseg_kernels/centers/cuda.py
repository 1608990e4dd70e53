"""CUDA kernels of the centers family, in the extension (csrc/centers)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.labels import is_bad
from ..core.library import define_kernel, ops
from ..core.unit import EPS
from .folding import fold_gradient, fold_weights
from .means import MeanOutputs, finish_means, sums_gradient
from .op import SimilarityGradInputs, SimilarityInputs
from .pull import class_gradients, finish_pull

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
    grad_logits, grad_pull, stats, *needed, logits, target_similarity = inputs._replace(
        weights=inputs.weights.contiguous()
    )
    grad_target = None
    if grad_pull is not None and stats is not None and inputs.norms is not None and inputs.labels is not None:
        grad_target = torch.empty_like(inputs.norms)
        grads = class_gradients(grad_pull, stats)[:, :, None].contiguous()
        ops.hard_class_sums_bwd_kernel(grads, inputs.labels, inputs.ignore_index, grad_target[:, None])
    ops.pixel_similarity_bwd_kernel(
        grad_logits, grad_target, *needed, EPS, _exact(), logits, target_similarity, grad_features, grad_weights
    )


def pull_fwd_kernel(
    target_similarity: Tensor, labels: Tensor, scale: float, ignore_index: int, pull: Tensor, pull_stats: Tensor
) -> None:
    """See pull.py."""
    batch, classes = len(pull_stats), pull_stats.shape[1] - 1
    sums, mass = pull_stats.new_empty((batch, classes, 1)), pull_stats.new_empty((batch, classes))
    ops.hard_class_sums_fwd_kernel(target_similarity[:, None], labels, ignore_index, sums, mass)
    bad = is_bad(labels, classes, ignore_index).flatten(1).any(1)
    finish_pull(sums[..., 0].masked_fill(bad[:, None], torch.nan), mass, scale, pull, pull_stats)
    pull_stats[:, 0].masked_fill_(bad, torch.inf)


def class_means_fwd_kernel(
    features: Tensor, assignment: Tensor, ignore_index: int, by_mass: bool, out: MeanOutputs
) -> None:
    """See means.py."""
    sums, mass = out.totals.new_empty(out.centers.shape), torch.empty_like(out.totals)
    hard = not assignment.is_floating_point()
    if hard:
        ops.hard_class_sums_fwd_kernel(features, assignment, ignore_index, sums, mass)
    else:
        ops.soft_class_sums_fwd_kernel(features, assignment, _exact(), sums, mass)
    finish_means(sums, mass, features.shape[2] * features.shape[3], by_mass, out)
    if hard:
        bad = is_bad(assignment, mass.shape[1], ignore_index).flatten(1).any(1)
        out.totals.masked_fill_(bad[:, None], torch.nan)
        out.centers.masked_fill_(bad[:, None, None], torch.nan)


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
    grad_sums, grad_mass = sums_gradient(grad, means, totals)
    if assignment.is_floating_point():
        ops.soft_class_sums_bwd_kernel(
            grad_sums, grad_mass, features, assignment, _exact(), grad_features, grad_assignment
        )
    elif grad_features is not None:
        grad_sums = grad_sums.masked_fill(totals.isnan()[..., None], 0.0)
        ops.hard_class_sums_bwd_kernel(grad_sums, assignment, ignore_index, grad_features)


fold_centers_fwd_kernel, fold_centers_bwd_kernel = fold_weights, fold_gradient
