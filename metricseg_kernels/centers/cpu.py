"""CPU kernels of the centers family, in the extension (csrc/centers); sums by label are the engine's."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.library import define_kernel, ops
from ..core.unit import EPS
from ..engines.pixel_rows.cpu import label_sums_bwd, label_sums_fwd
from .folding import fold_gradient, fold_weights
from .means import MeanOutputs, finish_means, sums_gradient
from .op import SimilarityGradInputs, SimilarityInputs
from .pull import class_gradients, finish_pull

KEEPS_LOGITS = False

define_kernel(
    "similarity_fwd_kernel(Tensor features, Tensor weights, Tensor? bias, Tensor? labels, str metric, float scale, "
    "int ignore_index, float eps, Tensor(a!) logits, Tensor(b!)? target_similarity, Tensor(c!)? norms) -> ()"
)
define_kernel(
    "similarity_bwd_kernel(Tensor grad_logits, Tensor? grad_target_similarity, Tensor features, Tensor weights, "
    "Tensor? labels, Tensor? norms, str metric, float scale, int ignore_index, float eps, Tensor(a!)? grad_features, "
    "Tensor(b!)? grad_weights) -> ()"
)
define_kernel("soft_sums_fwd_kernel(Tensor features, Tensor logits, Tensor(a!) sums, Tensor(b!) mass) -> ()")
define_kernel(
    "soft_sums_bwd_kernel(Tensor grad_sums, Tensor grad_mass, Tensor features, Tensor logits, "
    "Tensor(a!)? grad_features, Tensor(b!)? grad_logits) -> ()"
)


def similarity_fwd_kernel(
    inputs: SimilarityInputs, logits: Tensor, target_similarity: Tensor | None, norms: Tensor | None
) -> None:
    """See op.py."""
    inputs = inputs._replace(bias=None if inputs.bias is None else inputs.bias.contiguous())
    ops.similarity_fwd_kernel(*inputs, EPS, logits, target_similarity, norms)


def similarity_bwd_kernel(
    inputs: SimilarityGradInputs, grad_features: Tensor | None, grad_weights: Tensor | None
) -> None:
    """See op.py."""
    grad_logits, grad_pull, stats, *needed, _, _ = inputs  # logits are not kept
    grad_target = None
    if grad_pull is not None and stats is not None and inputs.norms is not None and inputs.labels is not None:
        grad_target = torch.empty_like(inputs.norms)
        grads = class_gradients(grad_pull, stats)[:, :, None]
        label_sums_bwd(grads, inputs.labels, inputs.ignore_index, grad_target[:, None])
    ops.similarity_bwd_kernel(grad_logits, grad_target, *needed, EPS, grad_features, grad_weights)


def pull_fwd_kernel(
    target_similarity: Tensor, labels: Tensor, scale: float, ignore_index: int, pull: Tensor, pull_stats: Tensor
) -> None:
    """See pull.py."""
    batch, classes = len(pull_stats), pull_stats.shape[1] - 1
    sums, mass = pull_stats.new_empty((batch, classes, 1)), pull_stats.new_empty((batch, classes))
    label_sums_fwd(target_similarity[:, None], labels, ignore_index, sums, mass)
    finish_pull(sums[..., 0], mass, scale, pull, pull_stats)


def class_means_fwd_kernel(
    features: Tensor, assignment: Tensor, ignore_index: int, by_mass: bool, out: MeanOutputs
) -> None:
    """See means.py."""
    sums, mass = out.totals.new_empty(out.centers.shape), torch.empty_like(out.totals)
    if assignment.is_floating_point():
        ops.soft_sums_fwd_kernel(features, assignment, sums, mass)
    else:
        label_sums_fwd(features, assignment, ignore_index, sums, mass)
    finish_means(sums, mass, features.shape[2] * features.shape[3], by_mass, out)


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
        ops.soft_sums_bwd_kernel(grad_sums, grad_mass, features, assignment, grad_features, grad_assignment)
    elif grad_features is not None:
        label_sums_bwd(grad_sums, assignment, ignore_index, grad_features)


fold_centers_fwd_kernel, fold_centers_bwd_kernel = fold_weights, fold_gradient
