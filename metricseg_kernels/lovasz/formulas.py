"""The Lovasz loss as a function of counts and sums of errors in bins, in plain PyTorch and float64: [S, K, 2, N]."""

from __future__ import annotations

import torch
from torch import Tensor


def slopes(counts: Tensor) -> Tensor:
    """[S, K, 2, N]: what an error of a bin and kind is multiplied with in the loss of its class; any number where no
    error is.

    Over errors in falling order the Jaccard loss J = 1 - I / U of the pixels passed so far goes from 0 to 1: one of the
    class takes 1 off I, another one adds 1 to U. Within a bin the order is unknown. Its pixels share the rise of J
    there, those of the class 1 / U on average over U.
    """
    others, own = counts.unbind(-2)
    below = counts.cumsum(-1)  # and in the bin itself
    hits, union = below[..., 1, :], below[..., -1:].sum(-2) - below[..., 0, :]  # I and U before the bin
    first = (union == 0).double()  # of an absent class, for which J is 0 before and 1 after
    after, union, added = ((union + others).clamp(min=1.0), union.clamp(min=1.0), others.clamp(min=1.0))
    of_own = torch.where(others > 0, (others / union).log1p() / added, 1 / union)
    of_others = hits / (union * after) + (first - own * (of_own - 1 / after)) / added
    return torch.stack([of_others, of_own], -2)


def lovasz_loss(counts: Tensor, sums: Tensor, valid: Tensor, weight: Tensor | None, average: str) -> Tensor:
    """The loss [] with `valid` pixels [S]; 0 if there are none."""
    losses = (sums * slopes(counts)).sum((-1, -2))
    counted = counts[:, :, 1].sum(-1) > 0 if average == "present" else (valid > 0)[:, None].expand_as(losses)
    share = counted.double() if weight is None else counted * weight.double()
    total = share.sum(1)
    counted = total > 0
    rows = (share * losses).sum(1) / torch.where(counted, total, 1.0)
    return rows.sum() / counted.sum().clamp(min=1)
