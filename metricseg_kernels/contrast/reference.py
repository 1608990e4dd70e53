"""Specification of the contrast family in plain PyTorch: every other backend must agree with it.

It materializes the matrix of all pairs and is differentiable any number of times.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import accumulator
from ..core.product import product


class Pairs(NamedTuple):
    """Masks of the positive and of the negative pairs [A, M]; pairs in neither are self, or absent."""

    positive: Tensor
    negative: Tensor


def pairs(
    labels: Tensor,
    other_labels: Tensor | None,
    ids: Tensor | None,
    other_ids: Tensor | None,
    ignore_index: int,
) -> Pairs:
    """Self is a pair of equal labels and equal ids; without ids, and without another set, the diagonal."""
    alone = other_labels is None
    other = labels if other_labels is None else other_labels
    # as int64: in the dtype of the labels, an ignore_index beyond it would wrap
    present = (labels.long() != ignore_index)[:, None] & (other.long() != ignore_index)
    same = labels[:, None] == other
    if ids is not None:
        itself = ids[:, None] == (ids if other_ids is None else other_ids)
    elif alone:
        itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    else:
        itself = torch.zeros_like(same)
    return Pairs(present & same & ~itself, present & ~same)


def taking_part(features: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The rows, with zeros in place of those that take no part."""
    return torch.where((labels.long() != ignore_index)[:, None], features, 0.0)


def masked_logsumexp(s: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(LSE over the masked entries of each row, whether there are any); 0 for a row without."""
    some = mask.any(1)
    kept = torch.where(mask, s, -torch.inf)
    return torch.where(some[:, None], kept, 0.0).logsumexp(1) * some, some


def pixel_contrast(
    anchors: Tensor,
    contrast: Tensor | None,
    which: Pairs,
    temperature: float,
    scale: float,
    denominator: str,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss [A], number of positives [A], or the sum of their weights); weights [M] >= 0 of the columns."""
    acc = accumulator(anchors.dtype)
    x = anchors.to(acc)
    s = product(x, (x if contrast is None else contrast.to(acc)).T) / temperature  # [A, M]
    weighted, w = s, s.new_ones(())
    if weights is not None:  # a column of weight 0 is absent
        w, some = weights.to(acc), weights > 0
        weighted = s + torch.where(some, w, 1.0).log()
        which = Pairs(which.positive & some, which.negative & some)
    count = torch.where(which.positive, w, 0.0).sum(1)
    if denominator == "negatives":
        # l_i = c / sum_p w_p sum_p w_p softplus(n_i - s_ip),  n_i = LSE over negatives of s_ij + log w_j
        n, some = masked_logsumexp(weighted, which.negative)
        log_ratio = torch.where(which.positive, n[:, None] - s, 0.0)
        terms = torch.logaddexp(log_ratio, torch.zeros_like(log_ratio))
        terms = torch.where(some[:, None] & which.positive, terms, 0.0)
    else:
        # l_i = c / sum_p w_p sum_p w_p (n_i - s_ip),  n_i = LSE over all but self of s_ij + log w_j
        n, _ = masked_logsumexp(weighted, which.positive | which.negative)
        terms = torch.where(which.positive, n[:, None] - s, 0.0)
    return scale * (w * terms).sum(1) / torch.where(count > 0, count, 1.0), count


def nca_contrast(anchors: Tensor, contrast: Tensor | None, which: Pairs, temperature: float) -> tuple[Tensor, Tensor]:
    """(loss [A], 1 for rows with positives [A])."""
    x = anchors.to(accumulator(anchors.dtype))
    s = product(x, (x if contrast is None else contrast.to(x.dtype)).T) / temperature  # [A, M]
    # l_i = softplus(LSE over negatives - LSE over positives)
    negative, some = masked_logsumexp(s, which.negative)
    positive, counted = masked_logsumexp(s, which.positive)
    ratio = negative - positive
    loss = torch.where(some & counted, torch.logaddexp(ratio, torch.zeros_like(ratio)), 0.0)
    return loss, counted.to(x.dtype)


def margin_contrast(
    anchors: Tensor,
    contrast: Tensor | None,
    which: Pairs,
    margin: float,
    positive_margin: float,
    power: int,
    nonzero: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(positive sum, negative sum, positive count, negative count), each []."""
    acc = accumulator(anchors.dtype)
    x = anchors.to(acc)
    y = x if contrast is None else contrast.to(acc)
    # d^2 = |x|^2 + |y|^2 - 2 x.y; what rounding alone can make of d = 0 is 0, and NaN stays NaN
    squares = x.square().sum(1)[:, None] + y.square().sum(1)
    d2 = squares - 2 * product(x, y.T)
    apart = ~(d2.detach() <= 8 * torch.finfo(acc).eps * squares.detach())
    d = torch.where(apart, torch.where(apart, d2, 1.0).sqrt(), 0.0)
    pull = torch.where(which.positive, (d - positive_margin).relu() ** power, 0.0)
    push = torch.where(which.negative, (margin - d).relu() ** power, 0.0)
    pulled, pushed = (pull > 0, push > 0) if nonzero else which
    return pull.sum(), push.sum(), pulled.sum().to(acc), pushed.sum().to(acc)
