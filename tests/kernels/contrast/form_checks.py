"""A form of the pair stream through the private ops, held against its specification."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contrast_cases import NAMED as CASES
from contrast_cases import Case, Sets, double, learning, make
from tolerances import FLOORS, assert_as_good, assert_gradient, skip_unsupported
from torch import Tensor

from metricseg_kernels.contrast import op, reference
from metricseg_kernels.engines.row_pairs.form import Form

Specification = Callable[[Tensor, Tensor | None, reference.Pairs, float], tuple[Tensor, Tensor]]  # (loss [A], counts)
# rows that take no part, without positives, without negatives; a bound too large for one exponent
NAMES = ("two-sets", "some-ignored", "ids-of-two-sets", "own-classes", "one-class", "no-contrast", "many-channels",
         "huge", "cold-two-sets")  # fmt: skip
CALLS = [pytest.param(name, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}") for dtype in FLOORS for name in
         (NAMES if dtype in (torch.float32, torch.bfloat16) else ("two-sets", "some-ignored", "cold-two-sets"))]  # fmt: skip


def run(form: Form, spec: Specification, case: Case, sets: Sets, backend: str, reduce: bool) -> tuple[Tensor, Tensor]:
    """(loss per anchor [A] or their sum, whether each anchor counts)."""
    ignored = case.ignore_index
    if backend == "reference":
        kinds = reference.pairs(sets.anchor_labels, sets.contrast_labels, sets.anchor_ids, sets.contrast_ids, ignored)
        sides = (sets.anchors, sets.anchor_labels), (sets.contrast, sets.contrast_labels)
        x, y = (rows if rows is None else reference.taking_part(rows, label, ignored) for rows, label in sides)
        loss, counts = spec(x, y, kinds, case.temperature)
        return loss.sum() if reduce else loss, counts
    features, labels, ids = (
        [t for t in side if t is not None]
        for side in zip(
            (sets.anchors, sets.anchor_labels, sets.anchor_ids),
            (sets.contrast, sets.contrast_labels, sets.contrast_ids),
            strict=True,
        )
    )
    sides = op.flat(op.sort_rows(features, labels, ids, ignored, backend))
    terms, counts, *_ = torch.ops.metricseg.contrast_loss_fwd(*sides, *form.pack(), reduce, False, False, backend)
    return terms[..., 0], counts[:, 0]


def compare(
    form: Callable[[float], Form], spec: Specification, name: str, dtype: torch.dtype, backend: str, device: str
) -> None:
    """Hold losses, counts and gradients of a backend against the specification's, in its dtype and in fp64."""
    skip_unsupported(backend, dtype)
    case = CASES[name]
    sets = make(case, dtype, device)
    upstream = torch.randn(case.rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for reduce in (False, True) if name == "some-ignored" else (False,):
        results = []
        for given, chosen in ((sets, backend), (sets, "reference"), (double(sets), "reference")):
            given = learning(given)
            loss, counts = run(form(case.temperature), spec, case, given, chosen, reduce)
            leaves = [t for t in (given.anchors, given.contrast) if t is not None]
            grads = torch.autograd.grad(loss, leaves, None if reduce else upstream.to(loss))
            results.append((loss.detach(), counts, grads))
        (loss, counts, grads), (plain, _, plain_grads), (truth, true_counts, true_grads) = results
        assert torch.equal(counts.double().cpu(), true_counts)
        assert_as_good(loss, plain, truth, dtype)
        for ours, simple, exact in zip(grads, plain_grads, true_grads, strict=True):
            assert ours.dtype == dtype
            assert_gradient(ours, simple, exact, dtype)
