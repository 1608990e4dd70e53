"""Rows sorted by label, so that most tiles of pairs are wholly positive or wholly negative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...core.checks import accumulator


class Rows(NamedTuple):
    """One side of the pairs, as the kernels take it.

    Row r of a kernel's work is row order[r] of `features`. `groups` are the labels as dense ranks, rising with r; -1,
    for rows that take no part, comes first. `ids` are dense ranks too.
    """

    features: Tensor  # [N, D], untouched
    order: Tensor  # [N] int64
    groups: Tensor  # [N] int32, sorted
    ids: Tensor | None  # [N] int32, in the order of `groups`
    weights: Tensor | None = None  # [N] in the accumulator dtype and that order, of the rows as columns
    factors: Tensor | None = None  # [N] likewise, of the terms of the rows


def dense_ranks(*values: Tensor) -> tuple[Tensor, ...]:
    """Each value as its rank among the distinct values of all tensors, int32: no host sync, no dynamic shape."""
    joined = torch.cat([v.reshape(-1).long() for v in values])
    ordered, order = joined.sort(stable=True)
    steps = torch.zeros_like(ordered, dtype=torch.int32)
    steps[1:] = ordered[1:] != ordered[:-1]
    ranks = torch.empty_like(steps).scatter_(0, order, steps.cumsum(0, dtype=torch.int32))
    return ranks.split([v.numel() for v in values])


def log_range(weights: Tensor) -> Tensor:
    """Return the largest |log w|, 0-d, of weights [N] above 0; N > 0."""
    return torch.where(weights > 0, weights, 1.0).log().abs().amax()


def sort_rows(
    features: list[Tensor],
    labels: list[Tensor],
    ids: list[Tensor] | None,
    ignore_index: int,
    weights: Tensor | None = None,
    factors: Tensor | None = None,
) -> list[Rows]:
    """The sides of the pairs, one or two, whose labels and ids are compared across.

    weights: of the rows of the last side, as columns; of two sides, a row of weight 0 takes no part. factors: of the
    terms of the rows of the first side.
    """
    # as int64: in the dtype of the labels, an ignore_index beyond it would wrap
    groups = [
        torch.where(label.long() == ignore_index, -1, rank)
        for label, rank in zip(labels, dense_ranks(*labels), strict=True)
    ]
    if weights is not None and len(groups) > 1:
        groups[1] = torch.where(weights == 0, -1, groups[1])
    orders = [group.argsort(stable=True) for group in groups]
    ranked = [None] * len(groups) if ids is None else [r[o] for r, o in zip(dense_ranks(*ids), orders, strict=True)]
    rows = [Rows(f, o, g[o], i) for f, o, g, i in zip(features, orders, groups, ranked, strict=True)]
    dtype = accumulator(features[0].dtype)
    if weights is not None:
        rows[-1] = rows[-1]._replace(weights=weights.to(dtype)[orders[-1]])
    if factors is not None:
        rows[0] = rows[0]._replace(factors=factors.to(dtype)[orders[0]])
    return rows
