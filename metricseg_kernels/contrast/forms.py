"""Forms of the pair loss: what a form keeps of each row, and how losses and gradients follow from it.

A form names the statistics of a row that forward leaves and the coefficients of a row that backward takes. The tiles of
pairs are a backend's: an epilogue per form in cpu.py with csrc/contrast, and in triton_kernels. Derivation:
docs/kernels/contrast.md.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """Constants of a loss over pairs of rows."""

    name: ClassVar[str]
    Stats: ClassVar[type[Any]]  # a NamedTuple of row statistics [R]
    Coefs: ClassVar[type[Any]]  # a NamedTuple of row coefficients [R]
    sums: ClassVar[int] = 1  # terms of a row, each a sum with a count of its own
    gradient_in_forward: ClassVar[bool] = True  # whether the stats of a row are complete before those of all rows are

    def terms(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        """Return ([R, sums] terms, [R, sums] counts) of row statistics [R, len(Stats)]."""
        raise NotImplementedError

    def coefs(self, stats: Tensor, grad_terms: Tensor) -> Tensor:
        """Return coefficients [R, len(Coefs)] of backward; grad_terms [R, sums], or [sums] for all rows."""
        raise NotImplementedError

    @classmethod
    def unpack(cls, name: str, numbers: list[float]) -> Form:
        """Return the form of this name with these constants, as a schema carries them."""
        return FORMS[name](*numbers)

    def pack(self) -> tuple[str, list[float]]:
        """Return the name and the constants."""
        return self.name, [float(v) for v in astuple(self)]


class LseStats(NamedTuple):
    """Row statistics [R] of "negatives" and "all". The LSE of a row's denominator is row_max / temperature + lse."""

    row_max: Tensor  # any number near the largest <x, y>
    lse: Tensor  # log sum exp((<x, y> - row_max) / temperature); -inf without such a pair
    positives: Tensor
    loss_sum: Tensor  # sum over positives of softplus(LSE - s); for "all" of LSE - s
    sigmoid_sum: Tensor  # sum over positives of sigmoid(LSE - s); unused by "all"


class LseCoefs(NamedTuple):
    """Row coefficients [R]: W = negative exp((<x, y> - row_max) / temperature) on the denominator's pairs, and
    positive sigmoid(LSE - s) off it on positives."""

    row_max: Tensor
    negative: Tensor
    positive: Tensor
    lse: Tensor


@dataclass(frozen=True)
class Negatives(Form):
    """softplus(LSE - s) over positives, the LSE over negatives."""

    name = "negatives"
    Stats = LseStats
    Coefs = LseCoefs

    temperature: float
    scale: float  # c = temperature / base_temperature

    def terms(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        """See `Form`."""
        row = LseStats(*stats.unbind(1))
        mean = self.scale * row.loss_sum / row.positives.clamp(min=1)
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
    """Row coefficients [R]: W = step exp(s - negative LSE) on negatives, -step exp(s - positive LSE) on positives."""

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
    Coefs = NcaCoefs

    temperature: float

    def log_ratio(self, row: NcaStats) -> tuple[Tensor, Tensor]:
        """Return (the difference of both LSEs, whether a row has both)."""
        live = ~(torch.isneginf(row.negative_lse) | torch.isneginf(row.positive_lse))
        ratio = (row.negative_max - row.positive_max) / self.temperature + row.negative_lse - row.positive_lse
        return torch.where(live, ratio, 0.0), live

    def terms(self, stats: Tensor) -> tuple[Tensor, Tensor]:
        """See `Form`."""
        ratio, live = self.log_ratio(NcaStats(*stats.unbind(1)))
        return (torch.logaddexp(ratio, torch.zeros_like(ratio)) * live)[:, None], live.to(stats.dtype)[:, None]

    def coefs(self, stats: Tensor, grad_terms: Tensor) -> Tensor:
        """See `Form`."""
        row = NcaStats(*stats.unbind(1))
        ratio, live = self.log_ratio(row)
        step = torch.where(live, grad_terms[..., 0].to(stats.dtype) * ratio.sigmoid() / self.temperature, 0.0)
        # exp(s - inf) = 0
        lses = (torch.where(live, v, rest) for v, rest in zip(row, (torch.inf, 0.0, torch.inf, 0.0), strict=True))
        return torch.stack(NcaCoefs(step, *lses), 1)


FORMS: dict[str, type[Form]] = {form.name: form for form in (Negatives, All, Margin, Nca)}
