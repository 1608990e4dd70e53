"""Launchers of the Triton kernels of the contrast family: see triton_kernels/kernels.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..core.checks import accumulator
from ..core.triton import constant, on_device_of
from ..engines.row_pairs.rows import Rows
from ..engines.row_pairs.triton import LaunchConfig, Side, by_column, make_config, make_side, parts_of
from .op import STATS, Form, LseStats, MarginCoefs, RowCoefs
from .triton_kernels.kernels import gradient, stats, symmetric_lse

GRADIENT_IN_FORWARD = False
PROGRAMS = 512
SYMMETRIC_PROGRAMS = 264  # each has a row [R] of sums
SPREAD = 60.0  # largest range of exponents for which one bound serves all rows
# fp16 weights are scaled so that the largest is close to the end of the range, since most are as small as 1 / M
FP16_TOP = 2.0**14


class Kind(NamedTuple):
    """The compile-time side of a form."""

    NAME: Any
    PHASE: Any
    TWIN: Any  # whether there are two launches, one for each value of FIXED, of which the data choose one
    FIXED: Any  # exponentials against one bound
    SELF: Any  # whether a row of X may also be in Y
    WITH_IDS: Any
    POWER: Any
    NONZERO: Any
    BY_ROW: Any  # which side's rows have coefficients, in `gradient`
    BY_COLUMN: Any


class SharedCoefs(NamedTuple):
    """Coefficients of rows [R], see `op.RowCoefs`; and shifted = negative exp((bound - row_max) / t), for one bound."""

    row_max: Tensor
    negative: Tensor
    positive: Tensor
    lse: Tensor
    shifted: Tensor


class Contrast:
    """Launches of a form on two sides, or on one against itself.

    If |s| <= `bound` for all pairs, and twice that stays in fp32's range (`fixed`, a flag on the device; set for unit
    norm and temperature >= 1 / 30), exponentials are exp((s - bound) / t): no running maximum, no rescaling, and one
    exponential serves both rows of a pair, W = exp((s - bound) / t) (u_i + u_j). Both variants are launched; the one
    that the flag rules out returns at once.
    """

    def __init__(self, x: Rows, y: Rows | None, form: Form, second_product: bool) -> None:
        self.form = form
        self.acc = accumulator(x.features.dtype)
        self.config: LaunchConfig = make_config(x.features, second_product, distances=form.name == "margin")
        self.x = make_side(x, self.config)
        self.y = self.x if y is None else make_side(y, self.config)
        self.with_ids = x.ids is not None
        # |<x, y>| <= |x|max |y|max
        self.bound = self.x.squares.amax().sqrt() * self.y.squares.amax().sqrt()
        self.fixed = (2 * self.bound / form.temperature <= SPREAD).int()

    def kind(self, phase: str, twin: bool, fixed: bool, by_row: bool = False, by_column: bool = False) -> Kind:
        form, may_be_self = self.form, self.x is self.y or self.with_ids
        constants = (form.name, phase, twin, fixed, may_be_self, self.with_ids, form.power, form.nonzero, by_row,
                     by_column)  # fmt: skip
        return Kind(*map(constant, constants))

    @property
    def numbers(self) -> tuple[float, float, float]:
        return 1 / self.form.temperature, self.form.margin, self.form.positive_margin

    def sums(self, phase: str, before: Tensor | None = None) -> Tensor:
        """A phase's sums per row and part, [parts, STATS, R]; `before` [2, R]: (row_max, lse), for "positives"."""
        parts = parts_of(self.x, self.y, self.config, PROGRAMS)
        out = self.x.squares.new_empty((parts, STATS, self.x.padded))
        twin = phase == "lse"
        for fixed in (True, False) if twin and self.x is not self.y else (False,):
            stats[(self.x.padded // self.config.shape.rows, parts)](
                self.x, self.y, before, out, self.bound, self.fixed, *self.numbers, self.kind(phase, twin, fixed),
                self.config.tile, parts, **self.config.options,
            )  # fmt: skip
        return out

    def symmetric_sums(self) -> Tensor:
        """Sums of exp((s - bound) / t), [R]."""
        blocks = self.x.padded // self.config.shape.rows
        programs = min(SYMMETRIC_PROGRAMS, blocks * (blocks // 2 + 1))
        out = self.x.squares.new_zeros((programs, self.x.padded))
        symmetric_lse[(programs,)](
            self.x, out, self.x.padded, self.bound, self.fixed, self.numbers[0], self.kind("lse", True, True),
            self.config.tile, **self.config.options,
        )  # fmt: skip
        return out.sum(0)

    def lse(self) -> tuple[Tensor, Tensor]:
        """(row_max [R], lse [R]), see `LseStats`."""
        parts = self.sums("lse")
        maxima, lses = parts[:, 0], parts[:, 1]  # [parts, R]
        row_max = maxima.amax(0)
        row_max = torch.where(row_max == -torch.inf, 0.0, row_max)
        lse = (lses - (row_max - maxima) / self.form.temperature).logsumexp(0)
        if self.x is self.y:
            sums = self.symmetric_sums()
            row_max = torch.where(self.fixed != 0, self.bound, row_max)
            lse = torch.where(self.fixed != 0, sums.log(), lse)
        return row_max, lse

    def with_coefs(self, coefficients: Tensor, side: Side) -> Side:
        """The side with the coefficients [rows, 4] of its rows."""
        if self.form.name == "margin":
            return side._replace(coefs=MarginCoefs(*by_column(coefficients, side)))
        coefs = RowCoefs(*coefficients.unbind(1))
        shifted = coefs.negative * ((self.bound - coefs.row_max) / self.form.temperature).exp()
        return side._replace(coefs=SharedCoefs(*by_column(torch.cat([coefficients, shifted[:, None]], 1), side)))

    def add_gradient(self, x: Side, y: Side, order: Tensor, unit: Tensor, out: Tensor) -> None:
        """The gradient of the rows of x, from the coefficients of either side."""
        if out.numel() == 0:
            return
        (rows, depth), width, slice = out.shape, self.config.width, self.config.shape.slice
        parts = parts_of(x, y, self.config, PROGRAMS // 2)
        grid = (x.padded // self.config.shape.rows, triton.cdiv(depth, slice or depth), parts)
        # Unaligned rows can't be stored in wide words; elements one by one take more registers than there are.
        shares = out
        if parts > 1 or depth < width or not out.is_contiguous():
            shares = out.new_empty((parts * rows, width), dtype=out.dtype if parts == 1 else self.acc)
        sides = (x.coefs is not None, y.coefs is not None)
        twin = self.form.name != "margin"
        for fixed in (True, False) if twin else (False,):
            gradient[grid](
                x, y, order, shares, rows, self.bound, self.fixed, unit, *self.numbers,
                self.kind("gradient", twin, fixed, *sides), self.config.tile, parts, **self.config.options,
            )  # fmt: skip
        if shares is not out:
            out.copy_(shares.view(parts, rows, width)[..., :depth].sum(0) if parts > 1 else shares[:, :depth])


def contrast_fwd_kernel(
    x: Rows, y: Rows | None, form: Form, stats: Tensor, grad_x: Tensor | None, grad_y: Tensor | None
) -> None:
    """See op.py; there are no gradients here."""
    count = x.features.shape[0]
    if count == 0:
        return
    with on_device_of(x.features):
        contrast = Contrast(x, y, form, second_product=False)
        if form.name == "margin":
            stats.copy_(contrast.sums("margin").sum(0)[:, :count].t())
            return
        row_max, lse = contrast.lse()
        row = LseStats(*contrast.sums("positives", torch.stack([row_max, lse])).sum(0))  # [R] each
        stats.copy_(torch.stack(row._replace(row_max=row_max, lse=lse), 1)[:count])


def contrast_bwd_kernel(
    x: Rows, y: Rows | None, form: Form, coefficients: Tensor, grad_x: Tensor | None, grad_y: Tensor | None
) -> None:
    """See op.py."""
    with on_device_of(x.features):
        contrast = Contrast(x, y, form, second_product=True)
        unit = coefficients.new_ones(())
        if contrast.config.dtype == torch.float16 and coefficients.numel():
            coefs = RowCoefs(*coefficients.unbind(1))
            # exp(s - row_max) is at most exp lse
            largest = torch.maximum((coefs.negative * coefs.lse.exp()).abs(), coefs.positive.abs()).amax()
            unit = FP16_TOP / largest.clamp(min=1e-30)
            scaled = coefs._replace(negative=coefs.negative * unit, positive=coefs.positive * unit)
            coefficients = torch.stack(scaled, 1)
        x_side = contrast.with_coefs(coefficients, contrast.x)
        if y is None:
            if grad_x is not None:
                contrast.add_gradient(x_side, x_side, x.order, unit, grad_x)
            return
        if grad_x is not None:
            contrast.add_gradient(x_side, contrast.y, x.order, unit, grad_x)
        if grad_y is not None:
            contrast.add_gradient(contrast.y, x_side, y.order, unit, grad_y)
