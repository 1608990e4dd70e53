"""CPU epilogues of the contrast family: the sweeps of each form over the tiles of engines/row_pairs.

A set with itself: every tile on or above the diagonal serves its rows and its columns, in three passes: sums of
exponentials, positives (tiles of whole classes), gradient. The exponentials are exp(s - bound / t), with one bound for
all rows. If |x|^2 / temperature is too large for that, and for two sets, complete rows are formed a panel at a time.
See docs/kernels/contrast.md; the formulas are in csrc/contrast.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.library import define_kernel, ops
from ..engines.row_pairs.cpu import BLOCK, TILE_KERNEL, Epilogue, Products, square_tiles
from ..engines.row_pairs.form import Form
from ..engines.row_pairs.rows import Rows, log_range, sort_rows
from . import forms
from .forms import LseCoefs, LseStats, MarginStats, Negatives, divide_terms, make_coefs, write_terms
from .sets import mark_sets

define_kernel(f"contrast_tile_kernel{TILE_KERNEL}")

GRADIENT_IN_FORWARD = True  # of two sets
ITSELF_IN_FORWARD = BLOCK  # rows of a set with itself, whose products are one tile
SPREAD = {torch.float32: 80.0, torch.float64: 600.0}  # exp(-spread) and its inverse are far from the dtype's ends


class Contrast(Epilogue):
    """A form on complete rows."""

    kernel = ops.contrast_tile_kernel


class Softmax(Contrast):
    """The forms "negatives" and "all"."""

    form: Negatives

    def __init__(self, x: Rows, y: Rows | None, form: Form) -> None:
        super().__init__(x, y, form)
        if self.other.weights is not None:
            self.name = f"weighted {self.name}"
        self.bound = self.one_bound()
        self.symmetric = self.square = self.bound is not None

    def one_bound(self) -> float | None:
        """Return a bound of all <x_i, x_j> if one can serve every row: a set with itself, and not too large a spread of
        the exponentials and their weights."""
        if self.y is not None or self.x.size == 0:
            return None
        bound = self.squares[0].amax().item() * 1.0001
        spread = 2 * bound / self.form.temperature
        if self.x.weights is not None:
            spread += log_range(self.x.weights).item()
        return bound if spread <= SPREAD[self.x.rows.dtype] else None

    def forward(self, stats: Tensor, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        """See op.py."""
        if self.bound is None:
            super().forward(stats, grad_x, grad_y)
            return
        row = LseStats(*stats.zero_().unbind(1))
        coefs = stats.new_full((len(stats), len(LseCoefs._fields)), self.bound)
        products, columns = square_tiles(self.x, None), self.zeros_by_column(3)
        wanted = self.with_negatives if self.form.name == "negatives" else self.with_pairs
        self.sweep("sum", coefs, row.lse[:, None], products.tiles(True, wanted), columns[:1])
        row.row_max.fill_(self.bound)
        row.lse.log_()
        LseCoefs(*coefs.unbind(1)).lse.copy_(row.lse)
        columns.zero_()
        self.sweep("positives", coefs, stats[:, 2:], products.tiles_within_groups(), columns)
        if grad_x is not None:
            self.gradients(products, self.coefs_of_sum(stats, slice(None)), grad_x, None)

    def gradients(self, products: Products, coefs: Tensor, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        """See `Epilogue`."""
        if self.bound is not None:  # also for rows without a gradient: one exponential serves both rows of a pair
            coefs = torch.cat([torch.full_like(coefs[:, :1], self.bound), coefs[:, 1:]], 1)
        super().gradients(products, coefs, grad_x, grad_y)


class Margin(Contrast):
    """The form "margin"."""

    form: forms.Margin

    differences = True

    def __init__(self, x: Rows, y: Rows | None, form: Form) -> None:
        super().__init__(x, y, form)
        self.symmetric, self.square = y is None, True

    def with_columns(self, coefs: Tensor) -> tuple[Tensor, Tensor]:
        """The squared norms and coefficients of rows and columns; tiles that serve their rows only have 0 for the
        latter."""
        rows = torch.cat([self.squares[0][:, None], coefs], 1)
        if self.symmetric:
            return rows, self.by_column(rows)
        columns = self.zeros_by_column(rows.shape[1])
        columns[0, : self.other.size] = self.squares[1]
        return rows, columns

    def near(self, x: slice, y: slice) -> bool:
        """See `Epilogue`."""
        return super().near(x, y) and not self.farther(x, y, self.form.margin)

    def forward(self, stats: Tensor, grad_x: Tensor | None, grad_y: Tensor | None) -> None:
        """See op.py; the gradients wait for the totals."""
        columns = self.zeros_by_column(len(MarginStats._fields))
        row, column = MarginStats(*stats.zero_().unbind(1)), MarginStats(*columns)

        def wanted(x: slice, y: slice) -> bool:
            if self.near(x, y):
                return True
            if not self.form.nonzero and self.with_pairs(x, y):  # far pairs count, though they add nothing
                x_present, y_present = self.x.groups[x] >= 0, self.other.groups[y] >= 0
                row.pushed[x] += x_present * y_present.sum()
                if self.symmetric:
                    column.pushed[y] += y_present * x_present.sum()
            return False

        tiles = square_tiles(self.x, self.y).tiles(self.symmetric, wanted)
        self.sweep("distances", stats.new_zeros((len(stats), 2)), stats, tiles, columns)


EPILOGUES: dict[str, type[Epilogue]] = {"negatives": Softmax, "all": Softmax, "margin": Margin, "nca": Contrast}


def contrast_fwd_kernel(
    x: Rows, y: Rows | None, form: Form, reduce: bool, terms: Tensor, counts: Tensor, stats: Tensor,
    grad_x: Tensor | None, grad_y: Tensor | None,
) -> None:  # fmt: skip
    """See op.py."""
    EPILOGUES[form.name](x, y, form).forward(stats, grad_x, grad_y)
    write_terms(form, x, stats, reduce, terms, counts)


def contrast_bwd_kernel(
    grad_terms: Tensor, stats: Tensor, x: Rows, y: Rows | None, form: Form, grad_x: Tensor | None,
    grad_y: Tensor | None,
) -> None:  # fmt: skip
    """See op.py."""
    EPILOGUES[form.name](x, y, form).backward(make_coefs(form, x, stats, grad_terms), grad_x, grad_y)


prototype_sets_kernel, sort_rows_kernel, contrast_mean_kernel = mark_sets, sort_rows, divide_terms
