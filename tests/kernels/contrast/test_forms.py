"""The form "nca" on one set and on two, with ids, through the private ops: every backend against the specification."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from contrast_cases import NAMED as CASES
from contrast_cases import Case, Sets, double, learning, make
from places import ROOT
from tolerances import FLOORS, assert_as_good, assert_gradient, skip_unsupported
from torch import Tensor

from metricseg_kernels.contrast import forms, op, reference

FAMILY = "contrast"
# rows that take no part, without positives, without negatives; a bound too large for one exponent
NAMES = ("two-sets", "some-ignored", "ids-of-two-sets", "own-classes", "one-class", "no-contrast", "many-channels",
         "huge", "cold-two-sets")  # fmt: skip
CALLS = [pytest.param(name, dtype, id=f"{name}-{str(dtype).removeprefix('torch.')}") for dtype in FLOORS for name in
         (NAMES if dtype in (torch.float32, torch.bfloat16) else ("two-sets", "some-ignored", "cold-two-sets"))]  # fmt: skip


def nca(case: Case, sets: Sets, backend: str, reduce: bool) -> tuple[Tensor, Tensor]:
    """(loss per anchor [A] or their sum, whether each anchor has positives)."""
    ignored = case.ignore_index
    if backend == "reference":
        kinds = reference.pairs(sets.anchor_labels, sets.contrast_labels, sets.anchor_ids, sets.contrast_ids, ignored)
        sides = (sets.anchors, sets.anchor_labels), (sets.contrast, sets.contrast_labels)
        x, y = (rows if rows is None else reference.taking_part(rows, label, ignored) for rows, label in sides)
        loss, counts = reference.nca_contrast(x, y, kinds, case.temperature)
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
    form = forms.Nca(case.temperature)
    terms, counts, *_ = torch.ops.metricseg.contrast_loss_fwd(*sides, *form.pack(), reduce, False, False, backend)
    return terms[..., 0], counts[:, 0]


@pytest.mark.parametrize(("name", "dtype"), CALLS)
@pytest.mark.kernels
def test_nca(name: str, dtype: torch.dtype, backend: str, device: str) -> None:
    skip_unsupported(backend, dtype)
    case = CASES[name]
    sets = make(case, dtype, device)
    upstream = torch.randn(case.rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for reduce in (False, True) if name == "some-ignored" else (False,):
        results = []
        for given, chosen in ((sets, backend), (sets, "reference"), (double(sets), "reference")):
            given = learning(given)
            loss, counts = nca(case, given, chosen, reduce)
            leaves = [t for t in (given.anchors, given.contrast) if t is not None]
            grads = torch.autograd.grad(loss, leaves, None if reduce else upstream.to(loss))
            results.append((loss.detach(), counts, grads))
        (loss, counts, grads), (plain, _, plain_grads), (truth, true_counts, true_grads) = results
        assert torch.equal(counts.double().cpu(), true_counts)
        assert_as_good(loss, plain, truth, dtype)
        for ours, simple, exact in zip(grads, plain_grads, true_grads, strict=True):
            assert ours.dtype == dtype
            assert_gradient(ours, simple, exact, dtype)


@pytest.mark.parametrize("form", forms.FORMS)
def test_fields_have_one_order_in_python_and_cpp(form: str) -> None:
    header = {"negatives": "softmax", "all": "softmax"}.get(form, form)
    text, known = (ROOT / f"csrc/contrast/{header}.h").read_text(), forms.FORMS[form]

    def fields(struct: str) -> tuple[str, ...]:
        found = re.search(rf"struct {struct} {{\s*(?:enum {{ (.*), count }}|double (.*));", text)
        return tuple((found[1] or found[2]).split(", "))

    assert fields("Stats") == known.Stats._fields
    assert fields("Coefs") == ("square",) * (form == "margin") + known.Coefs._fields
    assert fields("Constants") == tuple(f.name for f in dataclasses.fields(known))
