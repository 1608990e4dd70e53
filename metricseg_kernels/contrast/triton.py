"""Epilogues of the forms on the Triton engine for pairs of rows: the phases of each, and the formulas of their rows.

Device code: triton_kernels, a file per group of forms. Derivation: docs/kernels/contrast.md.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..core.triton import FUSED, on_device_of
from ..engines.row_pairs.form import Form
from ..engines.row_pairs.rows import Rows
from ..engines.row_pairs.triton import Epilogue, Gradient, Phase, RowForm, sort_rows
from .forms import All, Margin, MarginCoefs, MarginStats, NcaCoefs, Negatives, divide_terms
from .forms import Nca as NcaForm
from .sets import mark_sets
from .triton_kernels import margin, nca, softmax
from .triton_kernels.mean import mean
from .triton_kernels.prototypes import prototype_sets

MEAN_OF_ONE_PROGRAM = 65_536  # rows at most
COMPARISONS = 2**28  # of pixels with prototypes; more take operators of PyTorch
GRADIENT_IN_FORWARD, ITSELF_IN_FORWARD = False, 0


def lse_phase(positives: bool) -> Phase:
    """Return the phase of an LSE over negatives, or over all pairs."""
    shared = {"coefs": softmax.bound_of_live, "terms": softmax.exponentials}
    return Phase(softmax.LseState, softmax.start_lse, softmax.add_lse, positives, twin=True, **shared)


OVER_POSITIVES = Phase(
    softmax.PositiveSums, softmax.start_positives, softmax.add_positives, negatives=False, load=softmax.load_lse
)


class Softmax(Epilogue):
    """The form "negatives"."""

    phases = (lse_phase(False), OVER_POSITIVES)
    gradient = Gradient(softmax.softmax_weights, twin=True)
    rows = RowForm(
        len(softmax.SharedCoefs._fields), softmax.load_softmax_stats, softmax.softmax_terms, softmax.negatives_coefs,
        softmax.largest_softmax_weight,
    )  # fmt: skip

    def __init__(self, x: Rows, y: Rows | None, form: Negatives, second_product: bool) -> None:
        scale = 1 / form.temperature
        constants = softmax.Constants(isinstance(form, All))
        super().__init__(x, y, form, second_product, (scale, form.scale, form.scale * scale), constants, scale)


class SoftmaxOverAll(Softmax):
    """The form "all"."""

    phases = (lse_phase(True), OVER_POSITIVES)
    rows = Softmax.rows._replace(coefs=softmax.all_coefs)


class Ratio(Epilogue):
    """The form "nca"."""

    phases = (Phase(nca.NcaState, nca.start_nca, nca.add_nca, twin=True),)
    gradient = Gradient(nca.nca_weights)
    rows = RowForm(len(NcaCoefs._fields), nca.load_nca_stats, nca.nca_terms, nca.nca_coefs, nca.largest_nca_weight)

    def __init__(self, x: Rows, y: Rows | None, form: NcaForm, second_product: bool) -> None:
        scale = 1 / form.temperature
        super().__init__(x, y, form, second_product, (scale,), softmax.Constants(False), scale)


class Distances(Epilogue):
    """The form "margin"."""

    phases = (Phase(MarginStats, margin.start_margin, margin.add_margin),)
    gradient = Gradient(margin.margin_weights, distances=True)
    rows = RowForm(
        len(MarginCoefs._fields), margin.load_margin_stats, margin.margin_terms, margin.margin_coefs,
        margin.largest_margin_weight,
    )  # fmt: skip

    def __init__(self, x: Rows, y: Rows | None, form: Margin, second_product: bool) -> None:
        constants = margin.Constants(int(form.power), bool(form.nonzero))
        super().__init__(x, y, form, second_product, (form.margin, form.positive_margin), constants)


EPILOGUES: dict[str, Any] = {"negatives": Softmax, "all": SoftmaxOverAll, "margin": Distances, "nca": Ratio}


def contrast_fwd_kernel(
    x: Rows, y: Rows | None, form: Form, reduce: bool, terms: Tensor, counts: Tensor, stats: Tensor,
    grad_x: Tensor | None, grad_y: Tensor | None,
) -> None:  # fmt: skip
    """See op.py; there are no gradients here."""
    with on_device_of(x.features):
        EPILOGUES[form.name](x, y, form, second_product=False).forward(reduce, terms, counts, stats)


def contrast_bwd_kernel(
    grad_terms: Tensor, stats: Tensor, x: Rows, y: Rows | None, form: Form, grad_x: Tensor | None,
    grad_y: Tensor | None,
) -> None:  # fmt: skip
    """See op.py."""
    with on_device_of(x.features):
        EPILOGUES[form.name](x, y, form, second_product=True).backward(grad_terms, stats, grad_x, grad_y)


def prototype_sets_kernel(
    labels: Tensor, segment_ids: Tensor, prototype_labels: Tensor, ignore_index: int, x: Tensor, y: Tensor, ids: Tensor,
    places: Tensor,
) -> None:  # fmt: skip
    """See op.py."""
    pixels, count = len(labels), len(prototype_labels)
    if (pixels + count) * count > COMPARISONS:
        mark_sets(labels, segment_ids, prototype_labels, ignore_index, x, y, ids, places)
    elif pixels + count:
        wide = torch.int64 in (labels.dtype, prototype_labels.dtype)
        with on_device_of(labels):
            prototype_sets[(triton.cdiv(pixels, 16) + triton.cdiv(count, 16),)](
                labels.contiguous(), segment_ids.contiguous(), prototype_labels.contiguous(), x, y, ids, places, pixels,
                count, ignore_index, KEY=tl.int64 if wide else tl.int32, BLOCK=16, CHUNK=64, num_warps=4, maxnreg=168,
                **FUSED,
            )  # fmt: skip


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
