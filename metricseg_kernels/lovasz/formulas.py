"""The Lovasz loss as a function of counts and sums of errors in bins, in plain PyTorch and float64: [S, K, 2, N]."""

from __future__ import annotations

import torch
from torch import Tensor


def slopes(counts: Tensor) -> Tensor:
    """[S, K, 2, N]: what an error of a bin and kind is multiplied with in the loss of its class.

    Over errors in falling order the Jaccard loss J = 1 - I / U of the pixels passed so far goes from 0 to 1: one of the
    class takes 1 off I, another one adds 1 to U. Within a bin the order is unknown. Its pixels share the rise of J
    there, those of the class 1 / U on average over U.
    """
    others, own = counts.flip(-1).unbind(-2)
    size = own.sum(-1, keepdim=True)
    hits_after, union_after = size - own.cumsum(-1), size + others.cumsum(-1)
    hits, union = hits_after + own, union_after - others

    def jaccard(hits: Tensor, union: Tensor) -> Tensor:
        some = union > 0
        return torch.where(some, 1 - hits / torch.where(some, union, 1.0), 0.0)

    some, added, least = others > 0, torch.where(others > 0, others, 1.0), union.clamp(min=1.0)
    of_own = torch.where(some, (added / least).log1p() / added, 1 / least)
    rise = jaccard(hits_after, union_after) - jaccard(hits, union)
    of_others = torch.where(some, (rise - own * of_own) / added, 0.0)
    return torch.stack([of_others, of_own], -2).flip(-1)


def lovasz_loss(counts: Tensor, sums: Tensor, valid: Tensor, weight: Tensor | None, average: str) -> Tensor:
    """The loss [] with `valid` pixels [S]; 0 if there are none."""
    losses = (sums * slopes(counts)).sum((-1, -2))
    share = torch.ones_like(losses) if weight is None else weight.double().expand_as(losses)
    counted = (valid > 0)[:, None]
    if average == "present":
        counted = counts[:, :, 1].sum(-1) > 0
    share = torch.where(counted, share, 0.0)
    total = share.sum(1)
    rows = (share * losses).sum(1) / torch.where(total > 0, total, 1.0)
    return rows.sum() / (total > 0).sum().clamp(min=1)
