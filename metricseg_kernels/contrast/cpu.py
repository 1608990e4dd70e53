"""CPU kernels of the contrast family: the tiles that are visited, in which phases. Epilogues: csrc/contrast.

A set with itself: every tile on or above the diagonal serves its rows and its columns, in three passes: sums of
exponentials, positives (tiles of whole classes), gradient. The exponentials are exp(s - bound / t), with one bound for
all rows. If |x|^2 / temperature is too large for that, and for two sets, complete rows are formed a panel at a time.
A tile takes 4 MB, a panel 128 MB; the rest grows with A + M. See docs/kernels/contrast.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.library import define_kernel, ops
from ..engines.row_pairs.cpu import Pairs, SecondProduct, Tile, panels, square_tiles
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


class Stream(Pairs):
    """The pairs of a call, with the epilogue of its form."""

    def __init__(self, x: Rows, y: Rows | None, form: Form) -> None:
        super().__init__(x, y)
        self.form = form

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

    def terms(self, coefficients: Tensor, symmetric: bool) -> tuple[Tensor, Tensor | None]:
        """What an epilogue takes of rows and columns: the coefficients; for "margin" (squared norm, a, b, -).

        `symmetric`: a tile serves its columns too.
        """
        if self.form.name != "margin":
            return coefficients, self.by_column(coefficients) if symmetric else None
        rows = torch.nn.functional.pad(torch.cat([self.squares[0][:, None], coefficients], 1), (0, 1))
        if self.y is None:
            return rows, self.by_column(rows)
        columns = self.zeros_by_column(STATS)
        columns[0, : self.y.size] = self.squares[1]
        return rows, columns

    def near(self, x: slice, y: slice) -> bool:
        """Whether a tile can contribute to a gradient."""
        return self.with_pairs(x, y) and not (self.form.name == "margin" and self.farther(x, y, self.form.margin))


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
            gradient.add_weights(tile, coefficients, None, twice=True)
            products.spoil()
    if gradient is not None:
        gradient.write()


def _no_pairs(stats: Tensor) -> None:
    stats.zero_()
    stats[:, :2] = -torch.inf


def _symmetric_stats(stream: Stream, bound: float, stats: Tensor) -> None:
    stats.zero_()
    products, columns = square_tiles(stream.x, None), stream.zeros_by_column(STATS)
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
    terms, y_terms = stream.terms(stats.new_zeros((len(stats), 2)), symmetric=True)
    columns, alone = stream.zeros_by_column(STATS), stream.y is None

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


class Gradient(SecondProduct):
    """Gradients of both sides. That of "margin" is sum_j W_ij (x_i - y_j): its products count negative, and the sums of
    the weights times the rows are added at the end."""

    def __init__(self, stream: Stream, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        super().__init__(stream, grad_x, grad_y)
        self.stream, self.margin = stream, stream.form.name == "margin"
        self.x_sums = stream.x.rows.new_zeros((stream.x.size, STATS)) if self.margin else None
        self.y_sums = stream.zeros_by_column(STATS) if self.margin else None

    def add_weights(self, tile: Tile, x_terms: Tensor, y_terms: Tensor | None, twice: bool) -> None:
        """Turn a tile of products into weights, and add their products."""
        self.stream.epilogue(tile, WEIGHTS, x_terms, y_terms, self.x_sums, self.y_sums if twice else None)
        self.add(tile, -1 if self.margin else 1, twice)

    def write(self) -> None:
        """See `SecondProduct`."""
        x, y = self.stream.x, self.stream.y
        if self.x_sums is not None and self.y_sums is not None:
            column_sums = self.y_sums[0, : self.stream.other.size, None]
            if self.x_total is not None:
                self.x_total.addcmul_(self.x_sums[:, :1] + column_sums if y is None else self.x_sums[:, :1], x.rows)
            if self.y_total is not None and y is not None:
                self.y_total.addcmul_(column_sums, y.rows)
        super().write()


def contrast_bwd_kernel(
    x: Rows, y: Rows | None, form: Form, coefficients: Tensor, grad_x: Tensor | None, grad_y: Tensor | None
) -> None:
    """See op.py."""
    stream = Stream(x, y, form)
    bound = stream.bound()
    if bound is not None:  # also for rows without a gradient: one exponential serves both rows of a pair
        coefficients = torch.cat([torch.full_like(coefficients[:, :1], bound), coefficients[:, 1:]], 1)
    symmetric = y is None and (form.name == "margin" or bound is not None)
    terms, y_terms = stream.terms(coefficients, symmetric)
    # the tiles of the stats: another shape could round its products otherwise
    square = symmetric or form.name == "margin"
    products = square_tiles(stream.x, stream.y) if square else panels(stream.x, stream.other)
    gradient = Gradient(stream, grad_x, grad_y)
    for tile in products.tiles(symmetric, stream.near):
        gradient.add_weights(tile, terms, y_terms, twice=not symmetric or tile.x != tile.y)
        products.spoil()
    gradient.write()
