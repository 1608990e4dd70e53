"""Specification of the centers family in plain PyTorch: every other backend must agree with it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.checks import accumulator
from ..core.labels import is_class
from ..core.product import product
from ..core.unit import unit


def class_sums(features: Tensor, assignment: Tensor, num_classes: int, ignore_index: int) -> tuple[Tensor, Tensor]:
    """(sum_i M_ik x_i [B, K, C], sum_i M_ik [B, K]): M is softmax over K of logits, or whether i has label k."""
    acc = accumulator(features.dtype)
    x = features.to(acc).flatten(2).mT  # [B, N, C]
    if assignment.is_floating_point():
        soft = torch.softmax(assignment.to(acc), 1).flatten(2)  # [B, K, N]
        return product(soft, x), soft.sum(2)
    labels = assignment.flatten(1).long()
    known = is_class(labels, num_classes, ignore_index)
    at = torch.where(known, labels, num_classes)  # [B, N]; the others form a class of their own
    sums = x.new_zeros(x.shape[0], num_classes + 1, x.shape[2]).scatter_add(1, at[..., None].expand_as(x), x)
    mass = x.new_zeros(x.shape[0], num_classes + 1).scatter_add(1, at, torch.ones_like(at, dtype=acc))
    return sums[:, :-1], mass[:, :-1]


def similarity(
    features: Tensor, centers: Tensor, metric: str, scale: float, labels: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """(logits [B, K, h, w], target_similarity [B, h, w]), the latter scale cos(x_i, sg w_k), k the label of i, or 0."""
    acc = accumulator(features.dtype)
    x, w = features.to(acc).flatten(2), centers.to(acc)  # [B, C, N], [K, C] or [B, K, C]
    direction = unit(x, 1) if metric == "cosine" else x
    products = product(unit(w, -1) if metric == "cosine" else w, direction)  # [B, K, N]
    if metric == "euclidean":
        products = 2 * products - x.square().sum(1, keepdim=True) - w.square().sum(-1)[..., None]
    logits = (scale * products).unflatten(2, features.shape[2:])
    target = logits.new_zeros((0,))
    if labels is not None:
        known = is_class(labels, w.shape[-2], ignore_index)
        at = torch.where(known, labels.long(), 0).flatten(1)[:, None]
        target = (scale * product(unit(w.detach(), -1), direction)).gather(1, at)[:, 0]
        target = torch.where(known, target.unflatten(1, features.shape[2:]), 0.0)
    return logits.to(features.dtype), target
