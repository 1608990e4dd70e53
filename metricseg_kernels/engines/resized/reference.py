"""Parts of the specifications in plain PyTorch, on logits at label resolution."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.labels import is_bad, is_class


def classify(target: Tensor, classes: int, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (valid, bad) [B, (D,) H, W] and the labels with 0 if not valid."""
    valid = is_class(target, classes, ignore_index)
    return valid, is_bad(target, classes, ignore_index), torch.where(valid, target.long(), 0)


def count_labels(valid: Tensor, bad: Tensor, target: Tensor) -> list[Tensor]:
    """[valid pixels, labels out of range, the largest such label or 0]."""
    largest = torch.where(bad, target.double(), -torch.inf)
    example = largest.amax() if largest.numel() else largest.new_zeros(())
    return [valid.sum().double(), bad.sum().double(), torch.where(torch.isfinite(example), example, 0.0)]


def softmax_pixel(
    log_q: Tensor, labels: Tensor, weight: Tensor, gamma: float, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """(loss, -log p) [B, (D,) H, W] by log q [B, K, (D,) H, W], see `focal_loss`."""
    classes = log_q.shape[1]
    nll = -log_q.gather(1, labels[:, None])[:, 0]
    # S = (1-e) w_t (-log p) + (e/K) sum_k w_k (-log q_k)
    ce = weight[labels] * nll
    if label_smoothing:
        of_class = weight.view(-1, *[1] * (log_q.ndim - 2))
        ce = (1 - label_smoothing) * ce - label_smoothing / classes * (of_class * log_q).sum(1)
    # l = (1-p)^g S, with 1 - p as a sum over the other classes; the inner where keeps 0^(g-1) out of the gradient. At
    # p = 0 that of (1-p)^g, times S, has the limit 0
    if gamma:
        others = torch.zeros_like(log_q).scatter(1, labels[:, None], -torch.inf)
        log_u = (log_q + others).logsumexp(1) if classes > 1 else torch.full_like(nll, -torch.inf)
        log_u = torch.where(torch.isinf(nll), log_u.detach(), log_u)
        possible = ~torch.isneginf(log_u)
        ce = ce * torch.where(possible, (gamma * torch.where(possible, log_u, 0.0)).exp(), 0.0)
    return ce, nll
