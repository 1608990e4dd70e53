"""Rows sorted by label, so that most tiles of pairs are wholly positive or wholly negative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """One side of the pairs, as the kernels take it.

    Row r of a kernel's work is row order[r] of `features`. `groups` are the labels as dense ranks, rising with r; -1,
    for rows that take no part, comes first. `ids` are dense ranks too.
    """

    features: Tensor  # [N, D], untouched
    order: Tensor  # [N] int64
    groups: Tensor  # [N] int32, sorted
    ids: Tensor | None  # [N] int32, in the order of `groups`


def dense_ranks(*values: Tensor) -> tuple[Tensor, ...]:
    """Each value as its rank among the distinct values of all tensors, int32: no host sync, no dynamic shape."""
    joined = torch.cat([v.reshape(-1).long() for v in values])
    ordered, order = joined.sort(stable=True)
    steps = torch.zeros_like(ordered, dtype=torch.int32)
    steps[1:] = ordered[1:] != ordered[:-1]
    ranks = torch.empty_like(steps).scatter_(0, order, steps.cumsum(0, dtype=torch.int32))
    return ranks.split([v.numel() for v in values])


def sort_rows(features: list[Tensor], labels: list[Tensor], ids: list[Tensor] | None, ignore_index: int) -> list[Rows]:
    """The sides of the pairs, one or two, whose labels and ids are compared across."""
    # as int64: in the dtype of the labels, an ignore_index beyond it would wrap
    groups = [
        torch.where(label.long() == ignore_index, -1, rank)
        for label, rank in zip(labels, dense_ranks(*labels), strict=True)
    ]
    orders = [group.argsort(stable=True) for group in groups]
    ranked = [None] * len(groups) if ids is None else [r[o] for r, o in zip(dense_ranks(*ids), orders, strict=True)]
    return [Rows(f, o, g[o], i) for f, o, g, i in zip(features, orders, groups, ranked, strict=True)]
