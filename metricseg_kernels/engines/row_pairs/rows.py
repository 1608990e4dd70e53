"""Rows sorted by label, so that most tiles of pairs are wholly positive or wholly negative."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Labeled(NamedTuple):
    """One side of the pairs in the caller's order."""

    labels: Tensor  # [N] uint8, int32 or int64, any values
    ids: Tensor | None  # [N] likewise
    weights: Tensor | None = None  # [N], of the rows as columns
    factors: Tensor | None = None  # [N], of the terms of the rows


class Sorted(NamedTuple):
    """Where rows go: the fields of `Rows` but the features."""

    order: Tensor
    groups: Tensor
    ids: Tensor | None
    weights: Tensor | None = None
    factors: Tensor | None = None


class Rows(NamedTuple):
    """One side of the pairs, as the kernels take it.

    Row r of a kernel's work is row order[r] of `features`. `groups` stand for the labels: equal for equal labels of
    both sides, rising with the label and with r; -1, for rows that take no part, comes first. So do `ids` for ids.
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


def sort_rows(sides: list[Labeled], ignore_index: int, out: list[Sorted]) -> None:
    """Sort one or two sides, whose labels and ids are compared across; groups and ids are dense ranks.

    Of two sides, a row of the second whose weight is 0 takes no part.
    """
    labels, ids = [side.labels for side in sides], [side.ids for side in sides if side.ids is not None]
    ranked_ids = dense_ranks(*ids) if ids else None
    for i, (side, rank, rows) in enumerate(zip(sides, dense_ranks(*labels), out, strict=True)):
        # as int64: in the dtype of the labels, an ignore_index beyond it would wrap
        absent = side.labels.long() == ignore_index
        if i == 1 and side.weights is not None:
            absent |= side.weights == 0
        group = torch.where(absent, -1, rank)
        order = rows.order.copy_(group.argsort(stable=True))
        rows.groups.copy_(group[order])
        if rows.ids is not None and ranked_ids is not None:
            rows.ids.copy_(ranked_ids[i][order])
        if rows.weights is not None and side.weights is not None:
            rows.weights.copy_(side.weights[order])
        if rows.factors is not None and side.factors is not None:
            rows.factors.copy_(side.factors[order])
