"""Both sides of a call of the contrast family: argument checks, and the way to a backend.

Each error names the argument, what it got, and what it takes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..core import checks
from ..core.deprecation import warn_deprecated
from ..core.labels import resolve_ignore_index
from ..core.library import ops
from ..engines.row_pairs.form import Form
from . import op, reference


class Sets(NamedTuple):
    """Both sides of the pairs; without `contrast` the anchors are compared with themselves."""

    anchors: Tensor
    anchor_labels: Tensor
    contrast: Tensor | None
    contrast_labels: Tensor | None
    anchor_ids: Tensor | None
    contrast_ids: Tensor | None
    anchor_weights: Tensor | None = None
    contrast_weights: Tensor | None = None


def resolve_ignored(ignore_index: int | None, ignore_label: int | None) -> int:
    """The label that takes no part; `ignore_label` is its older name."""
    if ignore_label is not None:
        warn_deprecated("ignore_label", "ignore_index", removal="0.2.0", stacklevel=3)
        ignore_index = ignore_label
    if isinstance(ignore_index, str):
        raise TypeError(f"ignore_index must be an int or None, got {ignore_index!r}")
    return resolve_ignore_index(ignore_index, None)


def reference_sides(sets: Sets, ignored: int) -> tuple[Tensor, Tensor | None, reference.Pairs]:
    """Both sides as the reference takes them, with zeros in rows that take no part, and the kinds of their pairs."""
    y = None
    if sets.contrast is not None and sets.contrast_labels is not None:
        y = reference.taking_part(sets.contrast, sets.contrast_labels, ignored)
        if sets.contrast_weights is not None:
            y = torch.where((sets.contrast_weights == 0)[:, None], 0.0, y)
    which = reference.pairs(sets.anchor_labels, sets.contrast_labels, sets.anchor_ids, sets.contrast_ids, ignored)
    return reference.taking_part(sets.anchors, sets.anchor_labels, ignored), y, which


def run_form(sets: Sets, ignored: int, form: Form, reduce: bool, backend: str) -> tuple[Tensor, Tensor]:
    """(terms [A, n] or their sum [n], counts [A, n]) from the backend that takes the call; n is `form.sums`."""
    anchors, contrast = sets.anchors, sets.contrast
    features, labels, ids = [anchors], [sets.anchor_labels], [] if sets.anchor_ids is None else [sets.anchor_ids]
    if contrast is not None and sets.contrast_labels is not None:
        features.append(contrast)
        labels.append(sets.contrast_labels)
        if sets.contrast_ids is not None:
            ids.append(sets.contrast_ids)
    rows = op.sort_rows(features, labels, ids, ignored, backend, sets.contrast_weights, sets.anchor_weights)
    learns = torch.is_grad_enabled()
    grads = (learns and anchors.requires_grad, learns and contrast is not None and contrast.requires_grad)
    both = reduce and op.gradient_in_forward(backend, anchors, contrast, form)
    wanted = both and grads[0], both and grads[1]
    terms, counts, *_ = ops.contrast_loss_fwd(*op.flat(rows), *form.pack(), reduce, *wanted, backend)
    return terms, counts


def check_weights(name: str, weights: Tensor, rows_name: str, rows: Tensor) -> None:
    """Raise unless these are weights of rows; their values are read if that needs no host sync, or with
    METRICSEG_VALIDATE=1."""
    dtypes = (torch.float64, torch.float32) if rows.dtype == torch.float64 else (torch.float32,)
    checks.tensor(name, weights, 1, dtypes, f"[rows of {rows_name}]")
    checks.same_device(name, weights, rows_name, rows)
    if weights.shape[0] != rows.shape[0]:
        raise ValueError(f"{name} must have one entry per row of {rows_name}, {rows.shape[0]}, got {weights.shape[0]}")
    if weights.requires_grad:
        raise ValueError(f"{name} requires grad; there is no gradient to weights")
    if torch.compiler.is_compiling() or not checks.validates(weights.device) or weights.numel() == 0:
        return
    low, high = (bound.item() for bound in weights.aminmax())
    if not (low >= 0 and high < float("inf")):
        raise ValueError(f"{name} must be finite and >= 0, got values from {low} to {high}")


def check_positive(name: str, value: float) -> None:
    checks.real(name, value)
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be finite and > 0, got {value}")


def check_sets(sets: Sets) -> None:
    anchors, anchor_labels, contrast, contrast_labels, anchor_ids, contrast_ids, anchor_weights, weights = sets
    checks.tensor("anchors", anchors, 2, checks.FLOATS, "[A, D]")
    check_row_integers("anchor_labels", anchor_labels, "anchors", anchors)
    if anchor_ids is not None:
        check_row_integers("anchor_ids", anchor_ids, "anchors", anchors)
    if anchor_weights is not None:
        check_weights("anchor_weights", anchor_weights, "anchors", anchors)
    if (contrast is None) != (contrast_labels is None):
        given, absent = ("contrast_labels", "contrast") if contrast is None else ("contrast", "contrast_labels")
        raise ValueError(f"{given} is given without {absent}; a contrast set takes both")
    if contrast is None or contrast_labels is None:
        if contrast_ids is not None:
            raise ValueError("contrast_ids is given without contrast")
        if weights is not None:
            check_weights("contrast_weights", weights, "anchors", anchors)
        return
    check_alike("contrast", contrast, "[M, D]", "anchors", anchors)
    check_row_integers("contrast_labels", contrast_labels, "contrast", contrast)
    if weights is not None:
        check_weights("contrast_weights", weights, "contrast", contrast)
    if (anchor_ids is None) != (contrast_ids is None):
        raise ValueError("anchor_ids and contrast_ids go together; one of them is None")
    if contrast_ids is not None:
        check_row_integers("contrast_ids", contrast_ids, "contrast", contrast)


def check_alike(name: str, value: Tensor, shape: str, rows_name: str, rows: Tensor) -> None:
    """Raise unless two sets of rows have one device, dtype and D."""
    checks.tensor(name, value, 2, checks.FLOATS, shape)
    checks.same_device(name, value, rows_name, rows)
    if value.dtype != rows.dtype:
        raise TypeError(f"{name} must have the dtype of {rows_name}, {rows.dtype}, got {value.dtype}")
    if value.shape[1] != rows.shape[1]:
        raise ValueError(f"{name} must have the D of {rows_name}, {rows.shape[1]}, got {value.shape[1]}")


def check_row_integers(name: str, value: Tensor, rows_name: str, rows: Tensor) -> None:
    checks.tensor(name, value, 1, checks.LABELS, f"[rows of {rows_name}]")
    checks.same_device(name, value, rows_name, rows)
    if value.shape[0] != rows.shape[0]:
        raise ValueError(f"{name} must have one entry per row of {rows_name}, {rows.shape[0]}, got {value.shape[0]}")
