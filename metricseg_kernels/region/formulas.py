"""Losses as functions of the sums I, P and Y of each class, in plain PyTorch and float64. Small: [S, K]."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEAST = 1e-7  # of a score whose logarithm is taken


class Formula(NamedTuple):
    """The arguments of `region_loss` that concern the sums."""

    form: str = "dice"
    alpha: float = 0.5
    beta: float = 0.5
    smooth: float = 1.0
    exponent: float = 1.0
    log: bool = False
    average: str = "classes"
    label_smoothing: float = 0.0


def scores(hits: Tensor, mass: Tensor, count: Tensor, formula: Formula) -> Tensor:
    """Overlap of each class, by I, P and Y; 1 for 0 / 0."""
    if formula.form == "dice":
        over, under = 2 * hits, mass + count
    elif formula.form == "jaccard":
        over, under = hits, mass + count - hits
    else:
        over = hits
        under = hits + formula.alpha * (mass - hits) + formula.beta * (count - hits)
    if formula.smooth:  # of which `under` is no less
        return (over + formula.smooth) / (under + formula.smooth)
    nothing = under == 0
    return torch.where(nothing, 1.0, over / torch.where(nothing, 1.0, under))


def class_losses(score: Tensor, formula: Formula) -> Tensor:
    """1 - score, or -log score; to the power `exponent`, whose gradient is 0 at 0."""
    loss = -score.clamp(min=LEAST).log() if formula.log else 1 - score
    if formula.exponent == 1:
        return loss
    some = ~(loss <= 0)
    return torch.where(some, torch.where(some, loss, 1.0) ** formula.exponent, 0.0)


def region_loss(sums: Tensor, valid: Tensor, weight: Tensor | None, softmax: bool, formula: Formula) -> Tensor:
    """The loss [] of sums [S, K, 3] with `valid` pixels [S]; 0 if there are none."""
    hits, mass, count = sums.unbind(-1)
    present = ~(count <= 0) if formula.average == "present" else None
    if formula.label_smoothing:  # of y, of which I and Y are linear functions
        spread = formula.label_smoothing / (count.shape[1] if softmax else 2)
        hits = (1 - formula.label_smoothing) * hits + spread * mass
        count = (1 - formula.label_smoothing) * count + spread * valid[:, None]
    losses = class_losses(scores(hits, mass, count, formula), formula)
    if weight is None and present is None and len(losses) == 1:  # each operator is a launch
        return torch.where(valid > 0, losses.mean(1), 0.0).reshape(())
    share = torch.ones_like(losses) if weight is None else weight.double().expand_as(losses)
    counted = (valid > 0)[:, None]
    share = torch.where(counted if present is None else counted & present, share, 0.0)
    total = share.sum(1)
    rows = (share * losses).sum(1) / torch.where(total > 0, total, 1.0)
    return rows.sum() / (total > 0).sum().clamp(min=1)


def pixel_mean(loss: Tensor, sums: Tensor, weight: Tensor | None) -> Tensor:
    """A summed pixel loss over the sum of its pixels' weights; 0 if that is 0."""
    count = sums[..., 2].detach()
    if weight is None:
        return loss / count.sum().clamp(min=1)
    total = (count * weight.double()).sum()
    return loss / torch.where(total > 0, total, 1.0)
