"""Pixels and prototypes as the two sets of "nca", in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..engines.row_pairs.rows import dense_ranks


def mark_sets(
    labels: Tensor,
    segment_ids: Tensor,
    prototype_labels: Tensor,
    ignore_index: int,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    places: Tensor,
) -> None:
    """Fill labels x [N] and y [P], equal where they are, -1 for rows that take no part, and ids [N], places [P]: equal
    where a pixel leaves a prototype out."""
    segment_ids, count = segment_ids.long(), len(y)
    torch.arange(count, device=places.device, out=places)
    x_ranks, y_ranks = dense_ranks(labels, prototype_labels)
    x.copy_(torch.where((labels.long() == ignore_index) | (segment_ids < 0), -1, x_ranks))
    y.copy_(torch.where((prototype_labels.long() == ignore_index) | (prototype_labels.long() < 0), -1, y_ranks))
    # its own prototype is left out if another has its label
    alike = torch.zeros(len(x) + count, dtype=torch.long, device=y.device).index_add_(
        0, y.clamp(min=0), (y >= 0).long()
    )
    has_own = (segment_ids >= 0) & (segment_ids < count)
    if count:
        has_own &= y[segment_ids.clamp(0, count - 1)] == x
    others = alike[x.clamp(min=0)] - has_own.long()
    ids.copy_(torch.where(others > 0, segment_ids, -1))
