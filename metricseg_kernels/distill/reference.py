"""Specification of the distill family in plain PyTorch, on logits at label resolution; differentiable twice."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.labels import is_label
from ..core.resize import upsample


def _product(probability: Tensor, difference: Tensor) -> Tensor:
    """Their product; 0 log 0 = 0, and no NaN of it reaches a gradient."""
    absent = probability == 0
    return torch.where(absent, 0.0, probability * torch.where(absent, 0.0, difference))


def divergence(log_p: Tensor, log_q: Tensor, kind: str) -> Tensor:
    """KL(q || p), KL(p || q) or the Jensen-Shannon divergence [B, H, W] of log-probabilities [B, K, H, W]."""
    if kind == "kl":
        return _product(log_q.exp(), log_q - log_p).sum(1)
    if kind == "reverse_kl":
        return _product(log_p.exp(), log_p - log_q).sum(1)
    p, q = log_p.exp(), log_q.exp()
    nothing = (p == 0) & (q == 0)  # a logarithm of 0 has no gradient
    log_m = torch.logaddexp(torch.where(nothing, 0.0, log_p), torch.where(nothing, 0.0, log_q)) - math.log(2)
    return (_product(p, log_p - log_m) + _product(q, log_q - log_m)).sum(1) / 2


def distill(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None,
    height: int,
    width: int,
    temperature: float,
    kind: str,
    ignore_index: int,
    align_corners: bool,
    reduce: bool,
    mean: bool,
) -> Tensor:
    """The sum or mean [], or the map [B, H, W]."""
    z, y = (upsample(x, (height, width), align_corners) for x in (student, teacher))
    valid = torch.ones_like(z[:, 0], dtype=torch.bool) if target is None else ~is_label(target, ignore_index)
    z, y = (torch.where(valid[:, None], t, 0.0) for t in (z, y))  # what an ignored pixel holds has no effect
    loss = temperature**2 * divergence((z / temperature).log_softmax(1), (y / temperature).log_softmax(1), kind)
    loss = torch.where(valid, loss, 0.0)
    if not reduce:
        return loss
    return loss.sum() / valid.sum().clamp(min=1) if mean else loss.sum()
