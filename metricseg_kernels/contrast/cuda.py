"""CUDA kernels of the contrast family, in the extension (csrc/contrast, csrc/engines/row_pairs)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.library import define_kernel, ops
from ..engines.row_pairs.form import Form
from ..engines.row_pairs.rows import Rows
from .forms import FORMS

GRADIENT_IN_FORWARD = False
SIDES = (
    "Tensor x, Tensor x_order, Tensor x_groups, Tensor? x_ids, Tensor? x_weights, Tensor? x_factors, "
    "Tensor? y, Tensor? y_order, Tensor? y_groups, Tensor? y_ids, Tensor? y_weights, "
    "int form, float a, float b, float c, float d, bool exact"
)

define_kernel(f"contrast_fwd_kernel({SIDES}, bool reduce, Tensor(a!) terms, Tensor(b!) counts, Tensor(c!) stats) -> ()")
define_kernel(
    f"contrast_bwd_kernel(Tensor grad_terms, Tensor stats, {SIDES}, Tensor(a!)? grad_x, Tensor(b!)? grad_y) -> ()"
)


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
