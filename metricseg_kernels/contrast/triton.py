"""Epilogues of the forms on the Triton engine for pairs of rows: the phases of each, and how their parts are combined.

Device code: triton_kernels, a file per group of forms. Derivation: docs/kernels/contrast.md.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core.triton import FUSED, on_device_of
from ..engines.row_pairs.form import Form
from ..engines.row_pairs.rows import Rows
from ..engines.row_pairs.triton import Epilogue, Gradient, Phase, sort_rows
from .forms import All, LseStats, Margin, MarginStats, NcaStats, Negatives, divide_terms, make_coefs, write_terms
from .triton_kernels import margin, nca, softmax
from .triton_kernels.mean import mean

MEAN_OF_ONE_PROGRAM = 65_536  # rows at most
GRADIENT_IN_FORWARD, ITSELF_IN_FORWARD = False, 0


def lse_phase(positives: bool, negatives: bool) -> Phase:
    """Return the phase of an LSE over these pairs."""
    shared = {"coefs": softmax.bound_of_live, "terms": softmax.exponentials}
    return Phase(softmax.LseState, softmax.start_lse, softmax.add_lse, positives, negatives, twin=True, **shared)


NEGATIVES, POSITIVES, ALL = (lse_phase(*counted) for counted in ((False, True), (True, False), (True, True)))
OVER_POSITIVES = Phase(softmax.PositiveSums, softmax.start_positives, softmax.add_positives, negatives=False)
MARGIN = Phase(MarginStats, margin.start_margin, margin.add_margin)


class Softmax(Epilogue):
    """The forms "negatives" and "all"."""

    gradient = Gradient(softmax.softmax_weights, twin=True)
    proportional: ClassVar[tuple[str, ...]] = ("negative", "positive")

    def __init__(self, x: Rows, y: Rows | None, form: Negatives, second_product: bool) -> None:
        self.form, self.all = form, isinstance(form, All)
        scale = 1 / form.temperature
        super().__init__(x, y, second_product, (scale,), softmax.Constants(self.all), scale)

    def lse(self, phase: Phase) -> softmax.Lse:
        """Return the LSE of a phase, [R] each."""
        parts = softmax.LseState(*self.sums(phase))  # [parts, R]
        row_max = parts.row_max.amax(0)
        row_max = torch.where(row_max == -torch.inf, 0.0, row_max)
        lse = (parts.exps.log() - (row_max - parts.row_max) / self.form.temperature).logsumexp(0)
        sums = self.symmetric_sums(phase)
        if sums is not None:
            row_max = torch.where(self.fixed != 0, self.bound, row_max)
            lse = torch.where(self.fixed != 0, sums.log(), lse)
        return softmax.Lse(row_max, lse)

    def row_stats(self) -> Any:
        """See `Epilogue`."""
        lse = self.lse(ALL if self.all else NEGATIVES)
        return LseStats(*lse, *self.totals(OVER_POSITIVES, lse))

    def row_coefs(self, coefs: Any) -> Any:
        """See `Epilogue`."""
        shifted = coefs.negative * ((self.bound - coefs.row_max) / self.form.temperature).exp()
        return softmax.SharedCoefs(**coefs._asdict(), shifted=shifted)

    def largest(self, coefs: Any) -> Tensor:
        """See `Epilogue`; w exp(s - row_max) is at most exp lse."""
        positive = coefs.positive
        weights = self.y.weights
        if weights is not None:  # times the largest of a group
            x, y = (side.groups.clamp(min=0).long() for side in (self.x, self.y))
            largest = weights.new_zeros(len(x) + len(y)).scatter_reduce_(0, y, weights, "amax")
            positive = positive * largest[x[: len(positive)]]
        return super().largest(coefs._replace(negative=coefs.negative * coefs.lse.exp(), positive=positive))


class Nca(Softmax):
    """The form "nca"."""

    gradient = Gradient(nca.nca_weights)
    proportional = ("step",)
    row_coefs, largest = Epilogue.row_coefs, Epilogue.largest

    def row_stats(self) -> Any:
        """See `Epilogue`."""
        return NcaStats(*self.lse(NEGATIVES), *self.lse(POSITIVES))


class Distances(Epilogue):
    """The form "margin"."""

    gradient = Gradient(margin.margin_weights, distances=True)

    def __init__(self, x: Rows, y: Rows | None, form: Margin, second_product: bool) -> None:
        constants = margin.Constants(int(form.power), bool(form.nonzero))
        super().__init__(x, y, second_product, (form.margin, form.positive_margin), constants)

    def row_stats(self) -> Any:
        """See `Epilogue`."""
        return self.totals(MARGIN)


EPILOGUES: dict[str, Any] = {"negatives": Softmax, "all": Softmax, "margin": Distances, "nca": Nca}


def contrast_fwd_kernel(
    x: Rows, y: Rows | None, form: Form, reduce: bool, terms: Tensor, counts: Tensor, stats: Tensor,
    grad_x: Tensor | None, grad_y: Tensor | None,
) -> None:  # fmt: skip
    """See op.py; there are no gradients here."""
    if x.features.shape[0]:
        with on_device_of(x.features):
            row_stats = EPILOGUES[form.name](x, y, form, second_product=False).row_stats()
            stats.copy_(torch.stack(row_stats, 1)[: x.features.shape[0]])
    write_terms(form, x, stats, reduce, terms, counts)


def contrast_bwd_kernel(
    grad_terms: Tensor, stats: Tensor, x: Rows, y: Rows | None, form: Form, grad_x: Tensor | None,
    grad_y: Tensor | None,
) -> None:  # fmt: skip
    """See op.py."""
    with on_device_of(x.features):
        epilogue = EPILOGUES[form.name](x, y, form, second_product=True)
        epilogue.gradients(form.Coefs(*make_coefs(form, x, stats, grad_terms).unbind(1)), grad_x, grad_y)


def contrast_mean_kernel(
    terms: Tensor, counts: Tensor, weights: Tensor | None, by_row: bool, loss: Tensor, totals: Tensor, divisors: Tensor
) -> None:
    """See op.py."""
    if counts.shape[0] > MEAN_OF_ONE_PROGRAM:
        divide_terms(terms, counts, weights, by_row, loss, totals, divisors)
        return
    with on_device_of(counts):
        mean[(1,)](
            terms, counts, None if weights is None else weights.contiguous(), loss, totals, divisors, counts.shape[0],
            SUMS=terms.shape[0], BY_ROW=by_row, WEIGHTED=weights is not None, BLOCK=1024, num_warps=8, **FUSED,
        )  # fmt: skip


sort_rows_kernel = sort_rows
