"""CUDA kernels of the contrast family, in the extension (csrc/contrast, csrc/engines/row_pairs)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.library import define_kernel, ops
from ..engines.row_pairs import rows as plain
from ..engines.row_pairs.form import Form
from ..engines.row_pairs.rows import Labeled, Rows, Sorted
from .forms import FORMS, divide_terms
from .sets import mark_sets

GRADIENT_IN_FORWARD, ITSELF_IN_FORWARD = False, 0
SORTED_BY_COMPARISON = 8_192  # rows of both sides at most
MEAN_OF_ONE_BLOCK = 65_536  # rows at most
COMPARISONS = 2**28  # of pixels with prototypes; more take operators of PyTorch
SIDES = (
    "Tensor x, Tensor x_order, Tensor x_groups, Tensor? x_ids, Tensor? x_weights, Tensor? x_factors, "
    "Tensor? y, Tensor? y_order, Tensor? y_groups, Tensor? y_ids, Tensor? y_weights, "
    "int form, float a, float b, float c, float d, bool exact"
)

define_kernel(
    "prototype_sets_kernel(Tensor labels, Tensor segment_ids, Tensor prototype_labels, int ignore_index, "
    "Tensor(a!) x, Tensor(b!) y, Tensor(c!) ids, Tensor(d!) places) -> ()"
)
define_kernel(
    "sort_rows_kernel(Tensor x_labels, Tensor? x_ids, Tensor? x_weights, Tensor? x_factors, Tensor? y_labels, "
    "Tensor? y_ids, Tensor? y_weights, int ignore_index, Tensor(a!) x_order, Tensor(b!) x_groups, "
    "Tensor(c!)? x_ranked_ids, Tensor(d!)? x_sorted_weights, Tensor(e!)? x_sorted_factors, Tensor(f!)? y_order, "
    "Tensor(g!)? y_groups, Tensor(h!)? y_ranked_ids, Tensor(i!)? y_sorted_weights) -> ()"
)
define_kernel(
    "contrast_mean_kernel(Tensor terms, Tensor counts, Tensor? weights, bool by_row, Tensor(a!) loss, "
    "Tensor(b!) totals, Tensor(c!) divisors) -> ()"
)
define_kernel(f"contrast_fwd_kernel({SIDES}, bool reduce, Tensor(a!) terms, Tensor(b!) counts, Tensor(c!) stats) -> ()")
define_kernel(
    f"contrast_bwd_kernel(Tensor grad_terms, Tensor stats, {SIDES}, Tensor(a!)? grad_x, Tensor(b!)? grad_y) -> ()"
)


def prototype_sets_kernel(
    labels: Tensor,
    segment_ids: Tensor,
    prototype_labels: Tensor,
    ignore_index: int,
    x: Tensor,
    y: Tensor,
    ids: Tensor,
    places: Tensor,
) -> None:
    """See op.py."""
    few = (len(labels) + len(prototype_labels)) * len(prototype_labels) <= COMPARISONS
    mark = ops.prototype_sets_kernel if few else mark_sets
    mark(labels, segment_ids, prototype_labels, ignore_index, x, y, ids, places)


def sort_rows_kernel(sides: list[Labeled], ignore_index: int, out: list[Sorted]) -> None:
    """See rows.py; groups and ids are the numbers of rows with a smaller label or id."""
    if sum(len(side.labels) for side in sides) > SORTED_BY_COMPARISON:
        plain.sort_rows(sides, ignore_index, out)
        return
    x, y = sides[0], sides[1] if len(sides) > 1 else None
    others = (None,) * 3 if y is None else y[:3]
    sorted_others = (None,) * 4 if y is None else out[1][:4]
    ops.sort_rows_kernel(*x, *others, ignore_index, *out[0], *sorted_others)


def contrast_mean_kernel(
    terms: Tensor, counts: Tensor, weights: Tensor | None, by_row: bool, loss: Tensor, totals: Tensor, divisors: Tensor
) -> None:
    """See op.py."""
    mean = ops.contrast_mean_kernel if len(counts) <= MEAN_OF_ONE_BLOCK else divide_terms
    mean(terms, counts, weights, by_row, loss, totals, divisors)


def contrast_fwd_kernel(
    x: Rows,
    y: Rows | None,
    form: Form,
    reduce: bool,
    terms: Tensor,
    counts: Tensor,
    stats: Tensor,
    grad_x: Tensor | None,
    grad_y: Tensor | None,
) -> None:
    """See op.py; there are no gradients here."""
    ops.contrast_fwd_kernel(*_arguments(x, y, form), reduce, terms, counts, stats)


def contrast_bwd_kernel(
    grad_terms: Tensor,
    stats: Tensor,
    x: Rows,
    y: Rows | None,
    form: Form,
    grad_x: Tensor | None,
    grad_y: Tensor | None,
) -> None:
    """See op.py."""
    ops.contrast_bwd_kernel(grad_terms.contiguous(), stats, *_arguments(x, y, form), grad_x, grad_y)


def _arguments(x: Rows, y: Rows | None, form: Form) -> list[object]:
    """Both sides, the form and its numbers, and whether fp32 products are exact."""
    others = [None] * (len(x) - 1) if y is None else y[:-1]
    name, numbers = form.pack()
    exact = torch.get_float32_matmul_precision() == "highest"
    return [*x, *others, list(FORMS).index(name), *numbers, *[0.0] * (4 - len(numbers)), exact]
