"""The contrast family on the CPU: which tiles are met, in which phases.

A set with itself: every tile on or above the diagonal serves its rows and its columns, in each of three passes: sums of
exponentials (half a product), positives (tiles of whole classes), gradient (half a product, and one with the rows).
The exponentials are exp(s - bound / t) with one bound for all rows, so that a tile needs one for both. Where |x|^2 /
temperature is too large for that, and for two sets, complete rows are formed a panel at a time: three products with
both gradients, two with one, if forward makes them. A tile takes 4 MB, a panel 128 MB; the rest grows with A + M.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..core.library import define_kernel, ops
from ..engines.row_pairs.cpu import BLOCK, Side, Tile, add_product, extended, make_side, panels, square_tiles
from ..engines.row_pairs.rows import Rows
from .op import COEFFICIENTS, STATS, Form, coefficients_of

define_kernel(
    "contrast_tile_kernel(Tensor(a!) s, Tensor x_groups, Tensor y_groups, Tensor? x_ids, Tensor? y_ids, "
    "Tensor? x_terms, Tensor? y_terms, int form, int phase, float temperature, float margin, float positive_margin, "
    "bool squared, bool nonzero, Tensor(b!)? x_out, Tensor(c!)? y_out) -> ()"
)

FORMS = ("negatives", "all", "margin")  # as csrc/contrast/cpu_tile.h counts them
ROWS, SUM, POSITIVES, WEIGHTS = range(4)
GRADIENT_IN_FORWARD = True
SPREAD = {torch.float32: 80.0, torch.float64: 600.0}  # exp(-spread) and its inverse are far from the dtype's ends


def enclose(side: Side, classes: int) -> tuple[Tensor, Tensor]:
    """A ball around the rows of each group: means [K, D], radii [K]; -inf where a group has no row."""
    taking_part = side.groups[: side.size] >= 0
    rows, groups = side.rows[taking_part], side.groups[: side.size][taking_part].long()
    count = rows.new_zeros(classes).index_add_(0, groups, rows.new_ones(len(rows)))
    means = rows.new_zeros((classes, rows.shape[1])).index_add_(0, groups, rows) / count.clamp(min=1)[:, None]
    radii = rows.new_full((classes,), -torch.inf)
    return means, radii.scatter_reduce_(0, groups, (rows - means[groups]).norm(dim=1), "amax")


class Stream:
    """Two sides, and the epilogue on their tiles. Without y the set meets itself."""

    def __init__(self, x: Rows, y: Rows | None, form: Form) -> None:
        self.form = form
        self.x = make_side(x, alone=y is None)
        self.y = None if y is None else make_side(y, alone=False, may_stay=True)

    @property
    def other(self) -> Side:
        """The side of the columns."""
        return self.x if self.y is None else self.y

    @functools.cached_property
    def squares(self) -> tuple[Tensor, Tensor]:
        """Squared norms of rows and columns, [A] and [M]."""
        x, y = (torch.cat([(b * b).sum(1) for b in s.rows.split(BLOCK)]) for s in (self.x, self.other))
        return x, y

    def bound(self) -> float | None:
        """Of all <x_i, x_j>, where one bound can serve every row: a set with itself and not too large a spread."""
        if self.y is not None or self.form.name == "margin" or self.x.size == 0:
            return None
        bound = self.squares[0].amax().item() * 1.0001
        return bound if 2 * bound / self.form.temperature <= SPREAD[self.x.rows.dtype] else None

    def epilogue(self, tile: Tile, phase: int, x_terms: Tensor | None, y_terms: Tensor | None,
                 x_out: Tensor | None, y_out: Tensor | None = None) -> None:  # fmt: skip
        """One phase on one tile. x_terms [A, 4], x_out [A, STATS]; y_terms, y_out [4 or STATS, M extended]."""
        form, x, y = self.form, self.x, self.other
        columns = slice(tile.y.start, tile.y.start + tile.products.shape[1])
        ops.contrast_tile_kernel(
            tile.products, x.groups[tile.x], y.groups[columns],
            None if x.ids is None else x.ids[tile.x], None if y.ids is None else y.ids[columns],
            None if x_terms is None else x_terms[tile.x], None if y_terms is None else y_terms[:, columns],
            FORMS.index(form.name), phase, form.temperature, form.margin, form.positive_margin, form.power == 2,
            form.nonzero, None if x_out is None else x_out[tile.x], None if y_out is None else y_out[:, columns],
        )  # fmt: skip

    def by_column(self, terms: Tensor) -> Tensor:
        """[M, 4] -> [4, M extended]."""
        return torch.nn.functional.pad(terms.t(), (0, extended(len(terms)) - len(terms))).contiguous()

    def zeros_by_column(self) -> Tensor:
        """[STATS, M extended]."""
        return self.x.rows.new_zeros((STATS, extended(self.other.size)))

    def terms(self, coefficients: Tensor, symmetric: bool) -> tuple[Tensor, Tensor | None]:
        """What an epilogue takes of rows and columns: the coefficients; for "margin" (squared norm, a, b, -).

        `symmetric`: a tile serves its columns too.
        """
        if self.form.name != "margin":
            return coefficients, self.by_column(coefficients) if symmetric else None
        rows = torch.cat([self.squares[0][:, None], coefficients[:, :3]], 1)
        if self.y is None:
            return rows, self.by_column(rows)
        columns = self.zeros_by_column()
        columns[0, : self.y.size] = self.squares[1]
        return rows, columns

    def with_pairs(self, x: slice, y: slice) -> bool:
        """Whether a tile can hold pairs that take part; the others come first."""
        return bool(self.x.groups[x.stop - 1] >= 0)

    @functools.cached_property
    def gaps(self) -> Tensor | None:
        """How far the groups of the rows lie from those of the columns at least, [K, K]; None where it does not pay."""
        classes = int(max(side.groups.amax() for side in (self.x, self.other))) + 1
        if self.other.order is None or not 0 < classes <= BLOCK:
            return None
        (x_means, x_radii), (y_means, y_radii) = (enclose(side, classes) for side in (self.x, self.other))
        return torch.cdist(x_means, y_means) - x_radii[:, None] - y_radii

    def far(self, x: slice, y: slice) -> bool:
        """Whether "margin" leaves a tile alone: negatives only, all beyond the margin and a thousandth for rounding."""
        if self.gaps is None:
            return False
        rows, columns = self.x.groups[x].clamp(min=0), self.other.groups[y].clamp(min=0)
        if rows[0] <= columns[-1] and columns[0] <= rows[-1]:
            return False
        return bool(self.gaps[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].amin() > 1.001 * self.form.margin)

    def near(self, x: slice, y: slice) -> bool:
        """Whether a tile can move a row."""
        return self.with_pairs(x, y) and not (self.form.name == "margin" and self.far(x, y))

    def with_negatives(self, x: slice, y: slice) -> bool:
        """Whether it can hold negatives."""
        return bool(self.x.groups[x.start] != self.x.groups[y.stop - 1])


def contrast_fwd_kernel(
    x: Rows, y: Rows | None, form: Form, stats: Tensor, grad_x: Tensor | None, grad_y: Tensor | None
) -> None:
    """See op.py."""
    stream = Stream(x, y, form)
    if form.name == "margin":
        _margin_stats(stream, stats)
    elif (bound := stream.bound()) is not None:
        _symmetric_stats(stream, bound, stats)
    else:
        gradient = None if grad_x is None and grad_y is None else Gradient(stream, grad_x, grad_y)
        _complete_rows(stream, stats, gradient)


def _complete_rows(stream: Stream, stats: Tensor, gradient: Gradient | None) -> None:
    """The stats, a panel of complete rows at a time, and the gradient from the same products."""
    _no_pairs(stats)
    products, coefficients = panels(stream.x, stream.other), stats.new_empty((len(stats), COEFFICIENTS))
    for tile in products.tiles():
        stream.epilogue(tile, ROWS, None, None, stats)
        if gradient is not None:
            coefficients[tile.x] = coefficients_of(stats[tile.x], stats.new_ones(2), stream.form)
            gradient.add(tile, coefficients, None, twice=True)
            products.spoil()
    if gradient is not None:
        gradient.write()


def _no_pairs(stats: Tensor) -> None:
    stats.zero_()
    stats[:, :2] = -torch.inf


def _symmetric_stats(stream: Stream, bound: float, stats: Tensor) -> None:
    stats.zero_()
    products, columns = square_tiles(stream.x, None), stream.zeros_by_column()
    terms = stats.new_full((len(stats), COEFFICIENTS), bound)
    wanted = stream.with_negatives if stream.form.name == "negatives" else stream.with_pairs
    for tile in products.tiles(True, wanted):
        stream.epilogue(tile, SUM, terms, None, stats, None if tile.x == tile.y else columns)
    terms[:, 3] = (stats[:, 1] + columns[1, : len(stats)]).log()
    columns.zero_()
    y_terms = stream.by_column(terms)
    for tile in products.tiles_within_groups():
        stream.epilogue(tile, POSITIVES, terms, y_terms, stats, None if tile.x == tile.y else columns)
    stats += columns[:, : len(stats)].t()
    stats[:, :2] = terms[:, 0::3]


def _margin_stats(stream: Stream, stats: Tensor) -> None:
    stats.zero_()
    terms, y_terms = stream.terms(torch.zeros_like(stats), symmetric=True)
    columns, alone = stream.zeros_by_column(), stream.y is None

    def near(x: slice, y: slice) -> bool:
        if stream.near(x, y):
            return True
        if not stream.form.nonzero and stream.with_pairs(x, y):  # far pairs count, though they add nothing
            x_present, y_present = stream.x.groups[x] >= 0, stream.other.groups[y] >= 0
            stats[x, 3] += x_present * y_present.sum()
            if alone:
                columns[3, y] += y_present * x_present.sum()
        return False

    for tile in square_tiles(stream.x, stream.y).tiles(alone, near):
        stream.epilogue(tile, POSITIVES, terms, y_terms, stats, columns if alone and tile.x != tile.y else None)
    if alone:
        stats += columns[:, : len(stats)].t()


class Gradient:
    """Adds up weights times rows, on the sides that are asked for, and writes the sums out.

    dX += W Y, dY += W^T X; where the set meets itself both go to one total. For "margin", whose gradient is
    sum_j W_ij (x_i - y_j), the products count negative and the sums of the weights times the rows come on top.
    """

    def __init__(self, stream: Stream, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        self.stream, self.targets = stream, (grad_x, grad_y)
        self.x_total = None if grad_x is None else torch.zeros_like(stream.x.rows)
        alone = stream.y is None
        self.y_total = self.x_total if alone else None if grad_y is None else torch.zeros_like(stream.other.rows)
        self.margin = stream.form.name == "margin"
        self.x_sums = stream.x.rows.new_zeros((stream.x.size, STATS)) if self.margin else None
        self.y_sums = stream.zeros_by_column() if self.margin else None

    def add(self, tile: Tile, x_terms: Tensor, y_terms: Tensor | None, twice: bool) -> None:
        """One tile; `twice`: its weights serve its columns too."""
        stream = self.stream
        stream.epilogue(tile, WEIGHTS, x_terms, y_terms, self.x_sums, self.y_sums if twice else None)
        weights, sign = tile.products[:, : tile.y.stop - tile.y.start], -1 if self.margin else 1
        if self.x_total is not None:
            add_product(self.x_total[tile.x], weights, stream.other.rows[tile.y], sign)
        if self.y_total is not None and twice:
            add_product(self.y_total[tile.y], weights.t(), stream.x.rows[tile.x], sign)

    def write(self) -> None:
        """To the order and dtype of the features."""
        grad_x, grad_y = self.targets
        x, y = self.stream.x, self.stream.other
        if self.x_sums is not None and self.y_sums is not None:
            column_sums = self.y_sums[0, : y.size, None]
            if self.x_total is not None:
                own = self.x_sums[:, :1] + column_sums if self.stream.y is None else self.x_sums[:, :1]
                self.x_total.addcmul_(own, x.rows)
            if self.y_total is not None and self.stream.y is not None:
                self.y_total.addcmul_(column_sums, y.rows)
        if grad_x is not None and self.x_total is not None:
            x.fill(grad_x, self.x_total)
        if grad_y is not None and self.y_total is not None:
            y.fill(grad_y, self.y_total)


def contrast_bwd_kernel(
    x: Rows, y: Rows | None, form: Form, coefficients: Tensor, grad_x: Tensor | None, grad_y: Tensor | None
) -> None:
    """See op.py."""
    stream = Stream(x, y, form)
    bound = stream.bound()
    if bound is not None:  # of rows that move nobody too: one exponential serves both rows of a pair
        coefficients = torch.cat([torch.full_like(coefficients[:, :1], bound), coefficients[:, 1:]], 1)
    symmetric = y is None and (form.name == "margin" or bound is not None)
    terms, y_terms = stream.terms(coefficients, symmetric)
    # the tiles of the stats: another shape could round its products otherwise
    square = symmetric or form.name == "margin"
    products = square_tiles(stream.x, stream.y) if square else panels(stream.x, stream.other)
    gradient = Gradient(stream, grad_x, grad_y)
    for tile in products.tiles(symmetric, stream.near):
        gradient.add(tile, terms, y_terms, twice=not symmetric or tile.x != tile.y)
        products.spoil()
    gradient.write()
