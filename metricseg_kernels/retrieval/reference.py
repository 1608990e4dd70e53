"""Specification of the retrieval family in plain PyTorch: every other backend must agree with it.

It materializes the matrix of all pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.checks import accumulator
from ..core.product import product


def topk(queries: Tensor, bank: Tensor, valid: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """(values [Q, k] descending, indices [Q, k] int64); -inf and -1 beyond the rows that can be retrieved."""
    acc = accumulator(queries.dtype)
    s = product(queries.to(acc), bank.to(acc).T)  # [Q, M]
    s = torch.where(s.isnan() if valid is None else s.isnan() | ~valid, -torch.inf, s)
    values, indices = s.sort(dim=1, descending=True, stable=True)  # stable: equal values by their index
    missing = max(0, k - s.shape[1])
    values = torch.nn.functional.pad(values[:, :k], (0, missing), value=-torch.inf)
    indices = torch.nn.functional.pad(indices[:, :k], (0, missing), value=-1)
    return values, torch.where(values == -torch.inf, -1, indices)


def vote(labels: Tensor) -> Tensor:
    """The most frequent label [Q] of labels [Q, k], nearest first; of equally frequent ones that of the nearest. -1 for
    no neighbor."""
    k = labels.shape[1]
    frequency = (labels[:, :, None] == labels[:, None, :]).sum(2)
    rank = frequency * k - torch.arange(k, device=labels.device)
    best = torch.where(labels < 0, -(k**2), rank).argmax(1, keepdim=True)
    return labels.gather(1, best)[:, 0]
