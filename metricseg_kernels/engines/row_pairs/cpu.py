"""Row pairs on the CPU: products by torch's matrix library or by our register tiles, epilogues in C++.

A `Side` (cpu_sides.py) holds the rows of one set in the order of work. `Products` yields S = X Y^T tile by tile in one
buffer that stays in cache. An epilogue reads it, or writes weights in its place, which `SecondProduct` multiplies with
the rows. `Pairs` are two sides and the tiles that a walk can leave out; `Epilogue` adds the walks of a form.
A tile takes 4 MB, a panel 128 MB; the rest grows with A + M. See docs/kernels/contrast.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...core.library import define_kernel, ops
from . import cpu_products
from .cpu_sides import Side, extended, make_side, padded
from .form import Form
from .rows import Rows

TILE_KERNEL = (  # arguments of a family's kernel on tiles
    "(Tensor(a!) products, str epilogue, float[] constants, Tensor x_groups, Tensor y_groups, Tensor? x_ids, "
    "Tensor? y_ids, Tensor? x_weights, Tensor? y_weights, Tensor? x_coefs, Tensor? y_coefs, Tensor(b!)? x_out, "
    "Tensor(c!)? y_out) -> ()"
)
define_kernel("expect_writes_kernel(Tensor(a!) fresh) -> ()")  # csrc/common/host/pages.cpp

SMALL = 256  # rows of small groups that share a tile, where only pairs within a group count
BLOCK = 1024  # rows, and columns, of a square tile: 4 MB of products in fp32
PANEL_BYTES = 128 << 20  # of complete rows; at 64 MB a bank of 190,000 rows takes 1.2 times as long


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
        self.values = x.rows.new_empty(min(self.rows, self.x.size) * padded(min(self.columns, self.y.size)))
        ops.expect_writes_kernel(self.values)
        self.held: tuple[slice, slice] | None = None

    def spoil(self) -> None:
        """Something else was put in the place of the products."""
        self.held = None

    def tile(self, x: slice, y: slice) -> Tile:
        """The tile of some rows and columns, at most `rows` x `columns`."""
        rows, columns = x.stop - x.start, y.stop - y.start
        products = self.values[: rows * padded(columns)].view(rows, padded(columns))
        if self.held != (x, y):
            if self.x is self.y and x == y:
                cpu_products.put_square(self.x.rows[x], products[:, :columns])
            else:
                cpu_products.put_product(self.x.rows[x], *self.y.taken(y), products[:, :columns])
            products[:, columns:] = 0  # takes no part, but is multiplied
            self.held = x, y
        return Tile(x, y, products)

    def tiles(self, upper: bool = False, wanted: Callable[[slice, slice], bool] | None = None) -> Iterator[Tile]:
        """All tiles, or those on and above the diagonal; `wanted(rows, columns)` is asked before one is formed."""
        for x0 in range(0, self.x.size, self.rows):
            for y0 in range(x0 if upper else 0, self.y.size, self.columns):
                x, y = slice(x0, min(x0 + self.rows, self.x.size)), slice(y0, min(y0 + self.columns, self.y.size))
                if wanted is None or wanted(x, y):
                    yield self.tile(x, y)

    def tiles_within_groups(self) -> Iterator[Tile]:
        """Tiles on and above the diagonal of a sorted set with itself that hold all pairs within a group, each once.

        A set of one tile stays that tile: it may be held. The padding of a tile can be rows of another group.
        """
        if self.x.size <= min(self.rows, self.columns):
            yield from self.tiles(upper=True)
            return
        for begin, end in runs_of_groups(self.x):
            for x0 in range(begin, end, self.rows):
                for y0 in range(x0, end, self.columns):
                    yield self.tile(slice(x0, min(x0 + self.rows, end)), slice(y0, min(y0 + self.columns, end)))


def runs_of_groups(side: Side) -> Iterator[tuple[int, int]]:
    """(begin, end) of complete groups of a sorted set: a single one, or several with at most SMALL rows in total."""
    groups, counts = side.groups[: side.size].unique_consecutive(return_counts=True)
    begin = end = 0
    for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
        if group < 0 or end + count - begin > SMALL:
            if end > begin:
                yield begin, end
            begin = end
        end += count
        if group < 0:
            begin = end
    if end > begin:
        yield begin, end


def square_tiles(x: Side, y: Side | None) -> Products:
    """In tiles whose products, and whose rows of the gradient, stay in cache."""
    return Products(x, y, BLOCK, BLOCK)


def panels(x: Side, y: Side) -> Products:
    """In complete rows, as many at a time as PANEL_BYTES hold."""
    rows = PANEL_BYTES // max(1, padded(y.size) * x.rows.element_size())
    return Products(x, y, min(BLOCK, rows), y.size)


def enclose(side: Side, classes: int) -> tuple[Tensor, Tensor]:
    """A ball around the rows of each group: means [K, D], radii [K]; -inf where a group has no row."""
    taking_part = side.groups[: side.size] >= 0
    rows, groups = side.rows[taking_part], side.groups[: side.size][taking_part].long()
    count = rows.new_zeros(classes).index_add_(0, groups, rows.new_ones(len(rows)))
    means = rows.new_zeros((classes, rows.shape[1])).index_add_(0, groups, rows) / count.clamp(min=1)[:, None]
    radii = rows.new_full((classes,), -torch.inf)
    return means, radii.scatter_reduce_(0, groups, (rows - means[groups]).norm(dim=1), "amax")


class Pairs:
    """Two sides, and which tiles a walk over their pairs can leave out. Without y the set is paired with itself."""

    def __init__(self, x: Rows, y: Rows | None) -> None:
        self.x = make_side(x, alone=y is None)
        self.y = None if y is None else make_side(y, alone=False, may_stay=True)

    @property
    def other(self) -> Side:
        """The side of the columns."""
        return self.x if self.y is None else self.y

    @functools.cached_property
    def squares(self) -> tuple[Tensor, Tensor]:
        """Squared norms of rows and columns, [A] and [M]."""
        sides = [side for side in (self.x, self.y) if side]
        x, *others = (s.in_order(torch.cat([(b * b).sum(1) for b in s.rows.split(BLOCK)])) for s in sides)
        return x, others[0] if others else x

    def by_column(self, terms: Tensor) -> Tensor:
        """[M, n] -> [n, M extended]."""
        return torch.nn.functional.pad(terms.t(), (0, extended(len(terms)) - len(terms))).contiguous()

    def zeros_by_column(self, count: int) -> Tensor:
        """[count, M extended]."""
        return self.x.rows.new_zeros((count, extended(self.other.size)))

    def with_pairs(self, x: slice, y: slice) -> bool:
        """Whether a tile can hold pairs: rows that take no part come first."""
        return bool(self.x.groups[x.stop - 1] >= 0)

    @functools.cached_property
    def gaps(self) -> Tensor | None:
        """Least distances of the groups of the rows to those of the columns, [K, K]; None if that does not pay."""
        classes = int(max(side.groups.amax() for side in (self.x, self.other))) + 1
        if self.other.in_place or not 0 < classes <= BLOCK:
            return None
        (x_means, x_radii), (y_means, y_radii) = (enclose(side, classes) for side in (self.x, self.other))
        return torch.cdist(x_means, y_means) - x_radii[:, None] - y_radii

    def farther(self, x: slice, y: slice, distance: float) -> bool:
        """Whether a tile holds negatives only, all of them beyond a distance and a thousandth of it for rounding."""
        if self.gaps is None:
            return False
        rows, columns = self.x.groups[x].clamp(min=0), self.other.groups[y].clamp(min=0)
        if rows[0] <= columns[-1] and columns[0] <= rows[-1]:
            return False
        return bool(self.gaps[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].amin() > 1.001 * distance)

    def with_negatives(self, x: slice, y: slice) -> bool:
        """Whether a tile of a sorted set with itself can hold negatives."""
        return bool(self.x.groups[x.start] != self.x.groups[y.stop - 1])


class Total:
    """Sums of weights times rows for the rows of a side, whose gradient they become."""

    def __init__(self, side: Side, target: Tensor) -> None:
        self.side, self.target, self.rows = side, target, torch.empty_like(side.rows)
        self.empty = True  # whether `rows` holds nothing yet
        for tensor in (self.rows, target):
            ops.expect_writes_kernel(tensor)

    def add(self, place: slice, weights: Tensor, rows: Tensor, places: Tensor | None, sign: int) -> None:
        """Add sign weights rows to the rows of a place; rows and places as in `Side.taken`."""
        fresh = self.empty and sign == 1 and place == slice(0, len(self.rows))
        if self.empty and not fresh:
            self.rows.zero_()
        self.empty = False
        cpu_products.add_product(self.rows[place], weights, rows, places, sign, fresh)

    def write(self, own: Tensor | None) -> None:
        """Write the sums, and `own` [N, 1] times the side's rows, in the order and dtype of the features."""
        if self.empty:
            self.rows.zero_()
        if own is not None:
            self.rows.addcmul_(own, self.side.in_order(self.side.rows))
        self.side.fill(self.target, self.rows)


class SecondProduct:
    """Sums of weights times rows, on the sides that are asked for: X += W Y, Y += W^T X.

    If the set is paired with itself, both go to one total. `differences`: the sums are of W_ij (x_i - y_j) instead, so
    that products count negative, and the sums of the weights times the rows are added at the end.
    """

    def __init__(self, pairs: Pairs, differences: bool, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        self.pairs, self.sign = pairs, -1 if differences else 1
        self.x = self.y = None if grad_x is None else Total(pairs.x, grad_x)
        if pairs.y is not None:
            self.y = None if grad_y is None else Total(pairs.y, grad_y)
        self.x_sums = pairs.x.rows.new_zeros((pairs.x.size, 1)) if differences else None  # of the weights
        self.y_sums = pairs.zeros_by_column(1) if differences else None

    def add(self, tile: Tile, twice: bool) -> None:
        """Add the products of a tile of weights. `twice`: its weights serve its columns too."""
        weights = tile.products[:, : tile.y.stop - tile.y.start]
        if self.x is not None:
            self.x.add(tile.x, weights, *self.pairs.other.taken(tile.y), self.sign)
        if self.y is not None and twice:
            self.y.add(tile.y, weights.t(), *self.pairs.x.taken(tile.x), self.sign)

    def write(self) -> None:
        """Write the gradients."""
        itself, x_sums = self.pairs.y is None, self.x_sums
        y_sums = None if self.y_sums is None else self.y_sums[0, : self.pairs.other.size, None]
        if itself and x_sums is not None and y_sums is not None:
            x_sums = x_sums + y_sums
        if self.x is not None:
            self.x.write(x_sums)
        if self.y is not None and not itself:
            self.y.write(y_sums)


class Epilogue(Pairs):
    """The pairs of a call, and what its form does to their tiles: a class per form, which says how forward sweeps them.

    `kernel` does one phase on one tile, see csrc/engines/row_pairs/tile_kernel.h. It adds sums to rows, and in a set
    with itself to columns, where one tile on or above the diagonal serves both.
    """

    kernel: ClassVar[Callable[..., None]]  # of the family
    differences: ClassVar[bool] = False  # whether the gradient is sum_j W_ij (x_i - y_j), not sum_j W_ij y_j
    symmetric: bool = False  # whether tiles of a set with itself serve rows and columns
    square: bool = False  # whether forward takes square tiles, not panels: backward must round its products alike

    def __init__(self, x: Rows, y: Rows | None, form: Form) -> None:
        super().__init__(x, y)
        self.name, self.constants = form.pack()
        self.form, self.factors = form, x.factors

    def run(self, phase: str, tile: Tile, x_coefs: Tensor | None, y_coefs: Tensor | None,
            x_out: Tensor | None, y_out: Tensor | None = None) -> None:  # fmt: skip
        """One phase on one tile. x_coefs [A, n], x_out [A, sums]; y_coefs, y_out [n or sums, M extended]."""
        x, y, columns = self.x, self.other, slice(tile.y.start, tile.y.start + tile.products.shape[1])
        self.kernel(
            tile.products, f"{self.name} {phase}", self.constants, x.groups[tile.x], y.groups[columns],
            None if x.ids is None else x.ids[tile.x], None if y.ids is None else y.ids[columns],
            None if x.weights is None else x.weights[tile.x], None if y.weights is None else y.weights[columns],
            None if x_coefs is None else x_coefs[tile.x], None if y_coefs is None else y_coefs[:, columns],
            None if x_out is None else x_out[tile.x], None if y_out is None else y_out[:, columns],
        )  # fmt: skip

    def with_columns(self, coefs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The coefficients [A, n] of the rows, and those of the columns [n, M extended] where tiles serve them too."""
        return coefs, self.by_column(coefs) if self.symmetric else None

    def near(self, x: slice, y: slice) -> bool:
        """Whether a tile can contribute to a gradient."""
        return self.with_pairs(x, y)

    def sweep(self, phase: str, coefs: Tensor, sums: Tensor, tiles: Iterator[Tile], columns: Tensor) -> None:
        """Add a phase's sums over square tiles to sums [A, n]; columns [n, M extended]: zeros, for those of columns."""
        x_coefs, y_coefs = self.with_columns(coefs)
        for tile in tiles:
            self.run(phase, tile, x_coefs, y_coefs, sums, columns if self.symmetric and tile.x != tile.y else None)
        if self.symmetric:
            sums += columns[:, : self.x.size].t()

    def forward(self, stats: Tensor, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        """Fill the statistics [A, n], and the gradients of the summed terms where they are wanted.

        Here by the phase "rows", a panel of complete rows at a time. Gradients come from the same products.
        """
        stats.copy_(stats.new_tensor(self.form.absent))
        gradient = None if grad_x is None and grad_y is None else SecondProduct(self, self.differences, grad_x, grad_y)
        products, coefs = panels(self.x, self.other), stats.new_empty((len(stats), len(self.form.Coefs._fields)))
        for tile in products.tiles():
            self.run("rows", tile, None, None, stats)
            if gradient is not None:
                coefs[tile.x] = self.coefs_of_sum(stats, tile.x)
                self.run("weights", tile, coefs, None, None)
                gradient.add(tile, twice=True)
                products.spoil()
        if gradient is not None:
            gradient.write()

    def coefs_of_sum(self, stats: Tensor, rows: slice) -> Tensor:
        """Coefficients of some rows for the gradient of the summed terms."""
        ones = stats.new_ones(self.form.sums)
        return self.form.coefs(stats[rows], ones if self.factors is None else self.factors[rows, None] * ones)

    def backward(self, coefs: Tensor, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        """Fill the gradients from coefficients [A, n]."""
        products = square_tiles(self.x, self.y) if self.square else panels(self.x, self.other)
        self.gradients(products, coefs, grad_x, grad_y)

    def gradients(self, products: Products, coefs: Tensor, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        """Fill the gradients, with weights in place of the products."""
        x_coefs, y_coefs = self.with_columns(coefs)
        gradient = SecondProduct(self, self.differences, grad_x, grad_y)
        for tile in products.tiles(self.symmetric, self.near):
            twice = not self.symmetric or tile.x != tile.y
            self.run("weights", tile, x_coefs, y_coefs, gradient.x_sums, gradient.y_sums if twice else None)
            gradient.add(tile, twice)
            products.spoil()
        gradient.write()
