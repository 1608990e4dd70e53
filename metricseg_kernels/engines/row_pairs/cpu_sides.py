"""One set of rows in the order of work on the CPU, and its padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...core.checks import accumulator
from . import cpu_products
from .rows import Rows

PAD = 16  # columns of a tile come in multiples of it, the widest vector of the C++ loops
SORTED_BYTES = 64 << 20  # a larger set of columns is used where it lies
SORTED_ROWS = 8192  # of it that are sorted among themselves, so that neighbors in the order lie close in memory


def padded(count: int) -> int:
    """The next multiple of PAD."""
    return -(-count // PAD) * PAD


def extended(count: int) -> int:
    """Columns that a tile of `count` columns can reach, whatever column it begins at."""
    return padded(count) + PAD


class Side(NamedTuple):
    """One set in the order of work; groups, ids and weights end in rows that take no part, see `extended`."""

    rows: Tensor  # [N, D] in the accumulator dtype
    order: Tensor | None  # [N]: the row of the features of each row of work; None: the same
    groups: Tensor  # [N extended] int32
    ids: Tensor | None  # [N extended] int32
    weights: Tensor | None = None  # [N extended], of the rows as columns of the pairs
    in_place: bool = False  # whether `rows` are in the order of the features, not in that of work

    @property
    def size(self) -> int:
        return self.rows.shape[0]

    @property
    def places(self) -> Tensor | None:
        """[N]: where in `rows` the rows of work are; None: in their order."""
        return self.order if self.in_place else None

    def taken(self, part: slice) -> tuple[Tensor, Tensor | None]:
        """Rows of work: (rows, None), or all rows and the places of those meant."""
        return (self.rows[part], None) if self.places is None else (self.rows, self.places[part])

    def in_order(self, values: Tensor) -> Tensor:
        """Values [N, ...] of `rows` in the order of work."""
        return values if self.places is None else values[self.places]

    def fill(self, target: Tensor, values: Tensor) -> None:
        """Writes [N, ...] values in the order of work to a target in the order of the features."""
        if self.order is None:
            target.copy_(values)
        else:
            target.index_copy_(0, self.order, values.to(target.dtype))


def make_side(rows: Rows, alone: bool, may_stay: bool = False) -> Side:
    """`alone`: the set is paired with itself, so that without ids each row is known by its place. `may_stay`: a large
    set is not copied."""
    acc = accumulator(rows.features.dtype)
    groups, ids, weights = rows.groups, rows.ids, rows.weights
    order: Tensor | None = rows.order
    if ids is None and alone:
        ids = torch.arange(len(groups), dtype=torch.int32)
    absent = int((groups < 0).sum())  # rows that take no part: zeros, whatever they hold
    if absent and may_stay:
        may_stay = bool(rows.features.sum().isfinite())
    stays = may_stay and rows.features.numel() * acc.itemsize > SORTED_BYTES
    if stays:
        features = rows.features.to(acc).contiguous()
        near = cpu_products.use_own_products(features.shape[1])
        ranks = (rows.order // SORTED_ROWS if near else rows.order).argsort(stable=True)
        groups = groups[ranks]
        ids, weights = (None if values is None else values[ranks] for values in (ids, weights))
        order = rows.order[ranks] if near else None
    else:
        features = rows.features[rows.order].to(acc)
        features[:absent] = 0
    ids, weights = None if ids is None else _pad(ids), None if weights is None else _pad(weights, 0)
    return Side(features, order, _pad(groups), ids, weights, stays)


def _pad(values: Tensor, value: int = -1) -> Tensor:
    return torch.nn.functional.pad(values, (0, extended(len(values)) - len(values)), value=value)
