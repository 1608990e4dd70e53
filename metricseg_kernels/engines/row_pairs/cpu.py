"""The stream of tiles on the CPU: products by the matrix library that torch brings, epilogues in C++.

A `Side` holds the rows of one set in the order of work. `Products` yields S = X Y^T piece by piece in one buffer that
stays in cache; an epilogue reads it, or puts weights in its place, which then meet the rows once more (`add_product`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.checks import accumulator
from .rows import Rows

PAD = 16  # columns of a tile come in multiples of it, the widest vector of the C++ loops
BLOCK = 1024  # rows, and columns, of a square tile: 4 MB of products in fp32
PANEL_BYTES = 128 << 20  # of complete rows; at 64 MB a bank of 190,000 rows takes 1.2 times as long
SORTED_BYTES = 64 << 20  # a larger set of columns is used where it lies, in its own order


def padded(count: int) -> int:
    """The next multiple of PAD."""
    return -(-count // PAD) * PAD


class Side(NamedTuple):
    """One set in the order of work; groups and ids end in rows that take no part, up to a multiple of PAD."""

    rows: Tensor  # [N, D] in the accumulator dtype
    order: Tensor | None  # [N]: where the rows come from; None: they are the features themselves
    groups: Tensor  # [N padded] int32
    ids: Tensor | None  # [N padded] int32

    @property
    def size(self) -> int:
        return self.rows.shape[0]

    def fill(self, target: Tensor, values: Tensor) -> None:
        """Writes [N, ...] values in the order of work to a target in the order of the features."""
        if self.order is None:
            target.copy_(values)
        else:
            target.index_copy_(0, self.order, values.to(target.dtype))


def make_side(rows: Rows, alone: bool, may_stay: bool = False) -> Side:
    """`alone`: the set meets itself, so that without ids each row is known by its place. `may_stay`: a large set is
    not copied."""
    acc = accumulator(rows.features.dtype)
    groups, ids, order = rows.groups, rows.ids, rows.order
    if ids is None and alone:
        ids = torch.arange(len(groups), dtype=torch.int32)
    absent = int((groups < 0).sum())  # rows that take no part: zeros, whatever they hold
    if absent and may_stay:
        may_stay = bool(rows.features.sum().isfinite())
    if may_stay and rows.features.numel() * acc.itemsize > SORTED_BYTES:
        features = rows.features.to(acc).contiguous()
        groups = torch.empty_like(groups).index_copy_(0, order, groups)
        ids = None if ids is None else torch.empty_like(ids).index_copy_(0, order, ids)
        return Side(features, None, _pad(groups), None if ids is None else _pad(ids))
    features = rows.features[order].to(acc)
    features[:absent] = 0
    return Side(features, order, _pad(groups), None if ids is None else _pad(ids))


def _pad(values: Tensor) -> Tensor:
    return torch.nn.functional.pad(values, (0, padded(len(values)) - len(values)), value=-1)


class Tile(NamedTuple):
    """Rows x columns of the pairs."""

    x: slice
    y: slice
    products: Tensor  # [rows, padded columns]


class Products:
    """S = X Y^T of two sides, a tile at a time, in one buffer; a set with itself without y.

    rows, columns: of a tile. A tile that is asked for twice in a row is formed once, unless `spoil` was called.
    """

    def __init__(self, x: Side, y: Side | None, rows: int, columns: int) -> None:
        self.x, self.y, self.rows, self.columns = x, x if y is None else y, max(1, rows), max(1, columns)
        # zeros: the padding takes no part, but it is multiplied
        self.values = x.rows.new_zeros(min(self.rows, self.x.size) * padded(min(self.columns, self.y.size)))
        self.held: tuple[int, int] | None = None

    def spoil(self) -> None:
        """Something else was put in the place of the products."""
        self.held = None

    def tile(self, x0: int, y0: int) -> Tile:
        """The tile that begins at row x0 and column y0."""
        x, y = slice(x0, min(x0 + self.rows, self.x.size)), slice(y0, min(y0 + self.columns, self.y.size))
        rows, columns = x.stop - x0, y.stop - y0
        products = self.values[: rows * padded(columns)].view(rows, padded(columns))
        if self.held != (x0, y0):
            torch.mm(self.x.rows[x], self.y.rows[y].t(), out=products[:, :columns])
            self.held = x0, y0
        return Tile(x, y, products)

    def tiles(self, upper: bool = False, wanted: Callable[[slice, slice], bool] | None = None) -> Iterator[Tile]:
        """All tiles, or those on and above the diagonal; `wanted(rows, columns)` is asked before one is formed."""
        for x0 in range(0, self.x.size, self.rows):
            for y0 in range(x0 if upper else 0, self.y.size, self.columns):
                x, y = slice(x0, min(x0 + self.rows, self.x.size)), slice(y0, min(y0 + self.columns, self.y.size))
                if wanted is None or wanted(x, y):
                    yield self.tile(x0, y0)


def square_tiles(x: Side, y: Side | None) -> Products:
    """In tiles whose products, and whose rows of the gradient, stay in cache."""
    return Products(x, y, BLOCK, BLOCK)


def panels(x: Side, y: Side) -> Products:
    """In complete rows, as many at a time as PANEL_BYTES hold."""
    rows = PANEL_BYTES // max(1, padded(y.size) * x.rows.element_size())
    return Products(x, y, min(BLOCK, rows), y.size)


def add_product(total: Tensor, weights: Tensor, rows: Tensor, sign: int) -> None:
    """total += sign weights rows."""
    torch.addmm(total, weights, rows, alpha=sign, out=total)
