"""Launchers of the Triton kernels: see triton_kernels.py."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.checks import accumulator
from ..pairwise.rows import Rows
from ..pairwise.triton import Launch, Side, by_column, make_launch, make_side, on_device_of, parts_of
from .op import STATS, Form
from .triton_kernels import gradient, stats, symmetric_lse

PROGRAMS = 512
SYMMETRIC_PROGRAMS = 264  # each has a row [R] of sums
SPREAD = 60.0  # of exponents, within which one bound serves all rows
# fp16 weights are scaled so that the largest stays just in range, since most are as small as 1 / M
FP16_TOP = 2.0**14


class Kind(NamedTuple):
    """The compile-time side of a form."""

    NAME: Any
    PHASE: Any
    FIXED: Any  # exponentials against one bound
    SELF: Any  # whether a row can meet itself
    POWER: Any
    NONZERO: Any
    BY_ROW: Any  # which side's rows have terms, in `gradient`
    BY_COLUMN: Any


class Problem:
    """Two sides, or one that meets itself, and the constants of a form on them."""

    def __init__(self, x: Rows, y: Rows | None, form: Form, second_product: bool) -> None:
        self.form = form
        self.acc = accumulator(x.features.dtype)
        self.launch: Launch = make_launch(x.features, second_product, distances=form.name == "margin")
        self.x = make_side(x, self.launch)
        self.y = self.x if y is None else make_side(y, self.launch)
        self.meets_itself = y is None or x.ids is not None
        # |<x, y>| <= |x|max |y|max; `fixed`: whether it serves all rows
        self.bound = self.x.squares.amax().sqrt() * self.y.squares.amax().sqrt()
        self.fixed = (2 * self.bound / form.temperature <= SPREAD).int()

    def kind(self, phase: str, fixed: bool, by_row: bool = False, by_column: bool = False) -> Kind:
        form = self.form
        constants = (form.name, phase, fixed, self.meets_itself, form.power, form.nonzero, by_row, by_column)
        return Kind(*map(tl.constexpr, constants))

    @property
    def numbers(self) -> tuple[float, float, float]:
        return 1 / self.form.temperature, self.form.margin, self.form.positive_margin

    def sums(self, phase: str, before: Tensor | None = None) -> Tensor:
        """A phase's sums per row and part, [parts, STATS, R]; `before` [2, R]: (m, L) for "positives"."""
        parts = parts_of(self.x, self.y, self.launch, PROGRAMS)
        blocks = triton.cdiv(self.x.rows, self.launch.shape.rows)
        out = self.x.squares.new_empty((parts, STATS, blocks * self.launch.shape.rows))
        flag = self.fixed if phase == "lse" else None
        for fixed in (True, False) if phase == "lse" and self.x is not self.y else (False,):
            stats[(blocks, parts)](
                self.x, self.y, before, out, self.bound, flag, *self.numbers, self.kind(phase, fixed),
                self.launch.tile, parts, **self.launch.options,
            )  # fmt: skip
        return out

    def symmetric_sums(self) -> Tensor:
        """Of exp((s - bound) / t), [R]."""
        blocks = triton.cdiv(self.x.rows, self.launch.shape.rows)
        programs = min(SYMMETRIC_PROGRAMS, blocks * (blocks // 2 + 1))
        out = self.x.squares.new_zeros((programs, self.x.padded))
        symmetric_lse[(programs,)](
            self.x, out, self.bound, self.fixed, self.numbers[0], self.kind("lse", True), self.launch.tile,
            **self.launch.options,
        )  # fmt: skip
        return out.sum(0)

    def lse(self) -> tuple[Tensor, Tensor]:
        """(m [R], L [R])."""
        parts = self.sums("lse")
        m = parts[:, 0].amax(0)
        m = torch.where(m == -torch.inf, 0.0, m)
        log_sum = (parts[:, 1] - (m - parts[:, 0]) / self.form.temperature).logsumexp(0)
        if self.x is self.y:
            sums = self.symmetric_sums()[: len(m)]
            m = torch.where(self.fixed != 0, self.bound, m)
            log_sum = torch.where(self.fixed != 0, sums.log(), log_sum)
        return m, log_sum

    def with_terms(self, coefficients: Tensor, side: Side) -> Side:
        """(m, b, a, L, b exp((bound - m) / t)) of each row; (a, b, 0, 0, 0) for "margin"."""
        last = torch.zeros_like(coefficients[:, 0])
        if self.form.name != "margin":
            last = coefficients[:, 1] * ((self.bound - coefficients[:, 0]) / self.form.temperature).exp()
        return side._replace(terms=by_column(torch.cat([coefficients, last[:, None]], 1), side))

    def add(self, x: Side, y: Side, order: Tensor, unit: Tensor, out: Tensor) -> None:
        """The gradient of the rows of x, from the terms of either side."""
        if x.rows == 0 or out.shape[1] == 0:
            return
        shape, depth = self.launch.shape, out.shape[1]
        parts = parts_of(x, y, self.launch, PROGRAMS // 2)
        slices = triton.cdiv(depth, shape.slice or depth)
        blocks = triton.cdiv(x.rows, shape.rows)
        shares = out[None] if parts == 1 else out.new_empty((parts, *out.shape), dtype=self.acc)
        sides = (x.terms is not None, y.terms is not None)
        alike = self.form.name == "margin"
        for fixed in (False,) if alike else (True, False):
            gradient[(blocks, slices, parts)](
                x, y, order if parts == 1 else None, shares, *shares.stride(), depth, self.bound,
                None if alike else self.fixed, unit, *self.numbers, self.kind("gradient", fixed, *sides),
                self.launch.tile, parts, **self.launch.options,
            )  # fmt: skip
        if parts > 1:
            out.index_copy_(0, order, shares.sum(0).to(out.dtype))


def contrast_stats_kernel(x: Rows, y: Rows | None, form: Form, stats: Tensor) -> None:
    """See op.py."""
    count = x.features.shape[0]
    if count == 0:
        return
    with on_device_of(x.features):
        problem = Problem(x, y, form, second_product=False)
        if form.name == "margin":
            stats.copy_(problem.sums("margin").sum(0)[:, :count].t())
            return
        m, log_sum = problem.lse()
        positives = problem.sums("positives", torch.stack([m, log_sum])).sum(0)  # [STATS, R]
        stats[:, 0] = m[:count]
        stats[:, 1] = log_sum[:count]
        stats[:, 2:] = positives[2:, :count].t()


def contrast_grad_kernel(
    x: Rows, y: Rows | None, form: Form, coefficients: Tensor, grad_x: Tensor | None, grad_y: Tensor | None
) -> None:
    """See op.py."""
    with on_device_of(x.features):
        problem = Problem(x, y, form, second_product=True)
        unit = coefficients.new_ones(())
        if problem.launch.dtype == torch.float16 and coefficients.numel():
            m, b, a, log_sum = coefficients.unbind(1)
            # exp(s - m) is at most exp L
            unit = FP16_TOP / torch.maximum((b * log_sum.exp()).abs(), a.abs()).amax().clamp(min=1e-30)
            coefficients = torch.stack([m, b * unit, a * unit, log_sum], 1)
        mine = problem.with_terms(coefficients, problem.x)
        if y is None:
            if grad_x is not None:
                problem.add(mine, mine, x.order, unit, grad_x)
            return
        if grad_x is not None:
            problem.add(mine, problem.y, x.order, unit, grad_x)
        if grad_y is not None:
            problem.add(problem.y, mine, y.order, unit, grad_y)
