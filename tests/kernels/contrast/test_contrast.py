"""The contrast family: the specification against its formulas pair by pair, every backend against the specification."""

from __future__ import annotations

import pytest
import torch
from contrast_cases import (
    CASE_PARAMS,
    CASES,
    EMPTY,
    FORMS,
    NAMED,
    Case,
    against_reference,
    call,
    double,
    loss_and_grads,
    make,
    options,
)
from contrast_literal import literal_margin_contrast, literal_pixel_contrast
from tolerances import FLOOR_PARAMS, assert_as_good, assert_gradient

import metricseg_kernels as mk

FAMILY = "contrast"
PER_ROW = ["two-sets", "some-ignored", "own-classes", "one-row", "no-anchors", "ids-of-two-sets", "cold", "ignored",
           "weights", "weights-two-sets"]  # fmt: skip


@pytest.mark.parametrize("case", [c for c in CASES if c.rows <= 60], ids=lambda c: c.id)
@pytest.mark.parametrize("form", FORMS)
def test_reference_is_the_formula(form: str, case: Case) -> None:
    """Loss, counts and gradients, as written down for one pair at a time."""
    sets = make(case, torch.float64)
    kwargs = {**options(case, form), "backend": "reference"}
    got, grads = loss_and_grads(form, sets, **kwargs)
    if form == "margin":
        loss, *expected = literal_margin_contrast(case, sets)
        counted = 1
    else:
        losses, counted, *expected = literal_pixel_contrast(case, sets, form)
        loss = sum(losses) / (counted or 1)
        map_, stats = call(form, sets, **kwargs, reduction="none", return_stats=True)
        torch.testing.assert_close(map_, torch.tensor(losses, dtype=torch.float64), rtol=1e-9, atol=1e-10)
        assert stats.anchors.item() == pytest.approx(counted, rel=1e-12)
    assert got.item() == pytest.approx(loss, rel=1e-10, abs=1e-10)
    for ours, literal in zip(grads, expected, strict=False):
        torch.testing.assert_close(ours, literal / (counted or 1), rtol=1e-7, atol=1e-9 * max(1, case.magnitude))


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", CASE_PARAMS)
@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradients(form: str, case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    loss, grads = against_reference(form, case, dtype, backend, device)
    assert loss.isfinite() and all(g.isfinite().all() for g in grads)
    if case.id in EMPTY:
        assert loss == 0 and not any(g.any() for g in grads)


@pytest.mark.parametrize("learns", ["anchors", "contrast"])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_to_one_side(form: str, learns: str, backend: str, device: str) -> None:
    for name in ("two-sets", "two-sets-wide", "two-sets-tall", "strided-two-sets"):
        against_reference(form, NAMED[name], torch.float32, backend, device, learns)


@pytest.mark.parametrize("name", PER_ROW)
@pytest.mark.parametrize("form", ["negatives", "all"])
def test_loss_per_anchor(form: str, name: str, backend: str, device: str) -> None:
    """reduction="none", in the order of the anchors, with an upstream gradient per anchor."""
    case = NAMED[name]
    upstream = torch.randn(case.rows, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    against_reference(form, case, torch.float32, backend, device, upstream=upstream, reduction="none")


@pytest.mark.parametrize("form", ["negatives", "all"])
def test_sum_and_stats(form: str, backend: str, device: str) -> None:
    for name in ("some-ignored", "two-sets", "own-classes"):
        case = NAMED[name]
        sets = make(case, torch.float64, device)
        kwargs = {**options(case, form), "return_stats": True}
        total, stats = call(form, sets, **kwargs, reduction="sum", backend=backend)
        rows, true_stats = call(form, sets, **kwargs, reduction="none", backend="reference")
        assert torch.equal(stats.positives, true_stats.positives) and stats.anchors == (stats.positives > 0).sum()
        torch.testing.assert_close(total, rows.sum())
        mean, _ = call(form, sets, **kwargs, backend=backend)
        torch.testing.assert_close(mean, total / stats.anchors.clamp(min=1))
        against_reference(form, case, torch.float32, backend, device, reduction="sum")


@pytest.mark.parametrize("average", ["pairs", "nonzero"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("positive_margin", [0.0, 0.9])
def test_margin_forms(average: str, power: int, positive_margin: float, backend: str, device: str) -> None:
    kwargs = {"average": average, "power": power, "positive_margin": positive_margin}
    for name in ("some-ignored", "two-sets", "duplicates"):
        against_reference("margin", NAMED[name], torch.float32, backend, device, **kwargs)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("apart", [1e-18, 1e-20, 1e-22])
def test_rows_hardly_apart_pull_no_harder_than_others(apart: float, power: int, backend: str, device: str) -> None:
    """Their squared distance, near or below the smallest normal number, has a reciprocal root of up to infinity."""
    x = (torch.randn(20, 8, generator=torch.Generator().manual_seed(0)) * apart).to(device).requires_grad_()
    loss = mk.margin_contrast_loss(x, torch.arange(20, device=device) % 3, power=power, backend=backend)
    loss.backward()
    # each average is over pairs, of which a row has at most 19 and pulls on each by at most 2
    assert x.grad.norm(dim=1).max() < 1 and torch.isfinite(loss)


PANELS = [
    Case("panels", 1100, 8, classes=19, labels="some"),
    Case("panels-two-sets", 1030, 8, columns=2101, classes=7, column_labels="some"),
    Case("bank", 5, 16, columns=4999, classes=19),
    Case("one-class-of-many", 1050, 8, labels="one"),
]


@pytest.mark.parametrize("form, reduction", [*((form, "mean") for form in FORMS), ("negatives", "sum"), ("all", "sum")])
@pytest.mark.parametrize("case", PANELS, ids=lambda c: c.id)
def test_more_rows_than_a_panel(form: str, case: Case, reduction: str, backend: str, device: str) -> None:
    """Both sides learn from the mean, the anchors alone from the sum."""
    kwargs = {} if reduction == "mean" else {"reduction": reduction, "learns": "anchors"}
    against_reference(form, case, torch.float32, backend, device, **kwargs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["some-ignored", "ids-of-two-sets"])
def test_order_of_the_rows_means_nothing(form: str, name: str, backend: str, device: str) -> None:
    case = NAMED[name]
    sets = make(case, torch.float64, device)
    rng = torch.Generator().manual_seed(5)
    orders = [torch.randperm(n, generator=rng).to(device) for n in (case.rows, case.columns or case.rows)]
    shuffled = type(sets)(*(t if t is None else t[orders[i // 2 % 2 if i < 4 else i % 2]] for i, t in enumerate(sets)))
    kwargs = {**options(case, form), "backend": backend}
    loss, grads = loss_and_grads(form, sets, **kwargs)
    again, shuffled_grads = loss_and_grads(form, shuffled, **kwargs)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    for before, after, order in zip(grads, shuffled_grads, orders, strict=False):
        torch.testing.assert_close(after, before[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_set_against_itself_is_two_equal_sets_with_ids(form: str, backend: str, device: str) -> None:
    case = NAMED["some-ignored"]
    sets = make(case, torch.float64, device)
    ids = torch.arange(case.rows, device=device)
    two = sets._replace(contrast=sets.anchors, contrast_labels=sets.anchor_labels, anchor_ids=ids, contrast_ids=ids)
    kwargs = {**options(case, form), "backend": backend}
    loss, (grad,) = loss_and_grads(form, sets, **kwargs)
    same, (anchors, contrast) = loss_and_grads(form, two, **kwargs)
    torch.testing.assert_close(same, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(anchors + contrast, grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_expanded_and_shared_incoming_gradients(form: str, backend: str, device: str) -> None:
    """A stride-0 gradient, as `.sum()` sends, and one leaf that is both sides."""
    sets = make(NAMED["two-sets-square"], device=device)
    kwargs = options(NAMED["two-sets-square"], form)
    results = []
    for b, s in ((backend, sets), ("reference", sets), ("reference", double(sets))):
        x = s.anchors.clone().requires_grad_()
        both = s._replace(anchors=x, contrast=x * 2)
        if form == "margin":
            loss = call(form, both, **kwargs, backend=b).expand(3).sum()
        else:
            loss = call(form, both, **kwargs, reduction="none", backend=b).sum()
        results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
    got, plain, truth = results
    assert_as_good(got[0], plain[0], truth[0], torch.float32)
    assert_gradient(got[1], plain[1], truth[1], torch.float32)


def test_labels_are_compared_never_addressed(backend: str, device: str) -> None:
    """Any values of any dtype, of which only equality counts; the two sides may differ in dtype."""
    x, y = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n)).to(device) for n in (20, 30))
    ours, theirs = torch.arange(20, device=device) % 4, torch.arange(30, device=device) % 5
    expected = mk.pixel_contrast_loss(x, ours, y, theirs, temperature=1.0, backend=backend)
    for a, b, names in (
        (torch.uint8, torch.int64, [200, 0, 255, 7, 3]),
        (torch.int32, torch.int64, [2**31 - 1, -(2**31), 0, -2, 5]),
        (torch.int64, torch.int64, [2**63 - 1, -(2**63), 0, -2, 5]),
    ):
        table = torch.tensor(names, device=device)
        named = mk.pixel_contrast_loss(
            x, table[ours].to(a), y, table[theirs].to(b), temperature=1.0, ignore_index=4, backend=backend
        )
        assert torch.equal(named, expected) or torch.allclose(named, expected, rtol=1e-6)
