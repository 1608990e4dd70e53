"""Forms of the contrast family, in the order of work of the rows. Derivation: docs/kernels/contrast.md.

What a form does to tiles of pairs is a backend's: an epilogue in csrc/contrast with cpu.py, and in triton_kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..engines.row_pairs.form import Form
from ..engines.row_pairs.rows import Rows


class LseStats(NamedTuple):
    """Row statistics [R] of "negatives" and "all". The LSE of a row's denominator is row_max / temperature + lse."""

    row_max: Tensor  # any number near the largest <x, y>
    lse: Tensor  # log sum w exp((<x, y> - row_max) / temperature); -inf without such a pair. w: weights of the columns
    positives: Tensor  # sum over positives of w
    loss_sum: Tensor  # sum over positives of w softplus(LSE - s); for "all" of w (LSE - s)
    sigmoid_sum: Tensor  # sum over positives of w sigmoid(LSE - s); unused by "all"


class LseCoefs(NamedTuple):
    """Row coefficients [R]: W = w negative exp((<x, y> - row_max) / temperature) on the denominator's pairs, and
    w positive sigmoid(LSE - s) off it on positives; w is the weight of the column."""

    row_max: Tensor
    negative: Tensor
    positive: Tensor
    lse: Tensor


@dataclass(frozen=True)
class Negatives(Form):
    """softplus(LSE - s) over positives, the LSE over negatives."""

    name = "negatives"
    Stats = LseStats
    absent = (-torch.inf, -torch.inf, 0.0, 0.0, 0.0)
    Coefs = LseCoefs

    temperature: float
    scale: float  # c = temperature / base_temperature

    def terms(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        """See `Form`."""
        row = LseStats(*stats.unbind(1))
        mean = self.scale * row.loss_sum / torch.where(row.positives > 0, row.positives, 1.0)
        return mean[:, None], row.positives[:, None]

    def coefs(self, stats: Tensor, grad_terms: Tensor) -> Tensor:
        """See `Form`."""
        row = LseStats(*stats.unbind(1))
        # a row without a positive, or without a pair in its denominator, contributes no gradient: exp(s - inf) = 0
        live = (row.positives > 0) & ~torch.isneginf(row.lse)
        step = grad_terms[..., 0].to(stats.dtype) * (self.scale / self.temperature)
        positive = torch.where(live, step / row.positives, 0.0)
        negative = self.negative(step, positive, row)
        coefs = LseCoefs(
            row_max=torch.where(live, row.row_max, torch.inf),
            negative=torch.where(live, negative * (-row.lse).exp(), 0.0),
            positive=positive,
            lse=torch.where(live, row.lse, 0.0),
        )
        return torch.stack(coefs, 1)

    def negative(self, step: Tensor, positive: Tensor, row: LseStats) -> Tensor:
        """Return the gradient of each row's LSE."""
        return positive * row.sigmoid_sum


@dataclass(frozen=True)
class All(Negatives):
    """LSE - s over positives, the LSE over all rows but the anchor itself."""

    name = "all"

    def negative(self, step: Tensor, positive: Tensor, row: LseStats) -> Tensor:
        """See `Negatives`."""
        return step


class MarginStats(NamedTuple):
    """Row statistics [R] of "margin": sums over positives and over negatives, and what their means divide by."""

    pull: Tensor
    pulled: Tensor
    push: Tensor
    pushed: Tensor


class MarginCoefs(NamedTuple):
    """Row coefficients [R] of "margin": the gradients of both sums."""

    positive: Tensor
    negative: Tensor


@dataclass(frozen=True)
class Margin(Form):
    """relu(d - positive_margin)^power over positives, relu(margin - d)^power over negatives.

    Their two normalizers are complete only at the end of the pass.
    """

    name = "margin"
    Stats = MarginStats
    absent = (0.0, 0.0, 0.0, 0.0)
    Coefs = MarginCoefs
    sums = 2
    gradient_in_forward = False

    margin: float
    positive_margin: float
    power: float  # 1 or 2
    nonzero: float  # 1: count only the terms above 0

    def terms(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        """See `Form`."""
        row = MarginStats(*stats.unbind(1))
        return torch.stack([row.pull, row.push], 1), torch.stack([row.pulled, row.pushed], 1)

    def coefs(self, stats: Tensor, grad_terms: Tensor) -> Tensor:
        """See `Form`."""
        positive, negative = grad_terms.to(stats.dtype).expand(stats.shape[0], 2).unbind(1)
        return torch.stack(MarginCoefs(positive, negative), 1)


class NcaStats(NamedTuple):
    """Row statistics [R] of "nca": an LSE over negatives and one over positives, see `LseStats`."""

    negative_max: Tensor
    negative_lse: Tensor
    positive_max: Tensor
    positive_lse: Tensor


class NcaCoefs(NamedTuple):
    """Row coefficients [R]: W = step exp((<x, y> - negative_max) / temperature - negative_lse) on negatives, and
    -step exp((<x, y> - positive_max) / temperature - positive_lse) on positives."""

    step: Tensor
    negative_max: Tensor
    negative_lse: Tensor
    positive_max: Tensor
    positive_lse: Tensor


@dataclass(frozen=True)
class Nca(Form):
    """softplus(LSE over negatives - LSE over positives), 0 without either. Hwang et al., SegSort, ICCV 2019."""

    name = "nca"
    Stats = NcaStats
    absent = (-torch.inf,) * 4
    Coefs = NcaCoefs

    temperature: float

    def log_ratio(self, row: NcaStats) -> tuple[Tensor, Tensor]:
        """Return (the difference of both LSEs, whether a row has both)."""
        live = ~(torch.isneginf(row.negative_lse) | torch.isneginf(row.positive_lse))
        ratio = (row.negative_max - row.positive_max) / self.temperature + row.negative_lse - row.positive_lse
        return torch.where(live, ratio, 0.0), live

    def terms(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        """See `Form`."""
        row = NcaStats(*stats.unbind(1))
        ratio, live = self.log_ratio(row)
        terms = torch.where(live, torch.logaddexp(ratio, torch.zeros_like(ratio)), 0.0)
        return terms[:, None], (~torch.isneginf(row.positive_lse)).to(stats.dtype)[:, None]

    def coefs(self, stats: Tensor, grad_terms: Tensor) -> Tensor:
        """See `Form`."""
        row = NcaStats(*stats.unbind(1))
        ratio, live = self.log_ratio(row)
        step = torch.where(live, grad_terms[..., 0].to(stats.dtype) * ratio.sigmoid() / self.temperature, 0.0)
        idle = (torch.inf, 0.0, torch.inf, 0.0)  # exp(s - inf) = 0
        lses = (torch.where(live, value, other) for value, other in zip(row, idle, strict=True))
        return torch.stack(NcaCoefs(step, *lses), 1)


FORMS: dict[str, type[Any]] = {form.name: form for form in (Negatives, All, Margin, Nca)}


def write_terms(form: Form, x: Rows, stats: Tensor, reduce: bool, terms: Tensor, counts: Tensor) -> None:
    """Fill terms [R, sums], or their sum [sums], and counts [R, sums] from statistics of the sorted rows."""
    sorted_terms, sorted_counts = form.terms(stats)
    if x.factors is not None:
        sorted_terms = sorted_terms * x.factors[:, None]
    counts.index_copy_(0, x.order, sorted_counts)
    if reduce:
        torch.sum(sorted_terms, 0, out=terms)
    else:
        terms.index_copy_(0, x.order, sorted_terms)


def make_coefs(form: Form, x: Rows, stats: Tensor, grad_terms: Tensor) -> Tensor:
    """Return coefficients [R, len(Coefs)] of the sorted rows; grad_terms [R, sums] of the caller's, or [sums]."""
    grad_terms = grad_terms if grad_terms.ndim == 1 else grad_terms[x.order]
    return form.coefs(stats, grad_terms if x.factors is None else grad_terms * x.factors[:, None])


def divide_terms(
    terms: Tensor, counts: Tensor, weights: Tensor | None, by_row: bool, loss: Tensor, totals: Tensor, divisors: Tensor
) -> None:
    """Fill the loss [], what each term is divided by, divisors [n], and totals [n] of counts; see `op.mean`."""
    if not by_row:
        totals.copy_(counts.sum(0, dtype=torch.float64))
    elif weights is None:
        totals.copy_((counts[:, 0] > 0).sum())
    else:
        totals.copy_(torch.where(counts[:, 0] > 0, weights.to(terms.dtype), 0.0).sum())
    divisors.copy_(torch.where(totals > 0, totals, 1.0))
    torch.sum(terms / divisors, 0, out=loss)
