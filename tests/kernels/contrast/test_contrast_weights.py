"""Weights of anchors and of contrast rows: what they mean, beside the weighted cases of contrast_cases.py."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from contrast_cases import NAMED, Case, call, loss_and_grads, make, options
from gradients import gradcheck
from tolerances import skip_unsupported
from torch import Tensor

import metricseg_kernels as mk

FAMILY = "contrast"
FORMS = pytest.mark.parametrize("form", ["negatives", "all"])
SMALL = [Case("alone", 7, 3, classes=3, labels="some", temperature=0.5, weights="zeros"),
         Case("two", 5, 3, columns=6, classes=2, labels="some", ids="clash", temperature=0.5, weights="random")]  # fmt: skip
SMALL_PARAMS = pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in SMALL])


def same(ours: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]], rtol: float = 1e-9) -> None:
    for a, b in zip((ours[0], *ours[1]), (expected[0], *expected[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


@SMALL_PARAMS
@FORMS
def test_gradcheck_with_weights(form: str, case: Case, backend: str, device: str) -> None:
    sets = make(case, torch.float64, device)
    features = [t.requires_grad_() for t in (sets.anchors, sets.contrast) if t is not None]
    for reduction in ("mean", "none"):
        kwargs = {**options(case, form), "reduction": reduction, "backend": backend}

        def loss(x: Tensor, y: Tensor | None = None, kwargs: dict[str, Any] = kwargs) -> Tensor:
            return call(form, sets._replace(anchors=x, contrast=y), **kwargs)

        gradcheck(loss, features, backend, device)


@pytest.mark.parametrize("name", ["primes", "two-sets"])
@FORMS
def test_weights_of_one_change_nothing(form: str, name: str, backend: str, device: str) -> None:
    case = NAMED[name]
    sets = make(case, torch.float64, device)
    ones = torch.ones(case.rows, device=device), torch.ones(case.columns or case.rows, device=device)
    kwargs = {**options(case, form), "backend": backend}
    weighted = sets._replace(anchor_weights=ones[0], contrast_weights=ones[1])
    same(loss_and_grads(form, weighted, **kwargs), loss_and_grads(form, sets, **kwargs), 1e-12)


@FORMS
def test_weights_of_copies_of_a_row(form: str, backend: str, device: str) -> None:
    """k copies that weigh 1 / k each are one row. Two sets with ids, of which some are the anchor's own."""
    case = NAMED["ids-of-two-sets"]
    sets = make(case, torch.float64, device)
    assert sets.contrast is not None and sets.contrast_labels is not None and sets.contrast_ids is not None
    times = torch.arange(len(sets.contrast), device=device) % 3 + 1
    where = torch.arange(len(times), device=device).repeat_interleave(times)
    copies = sets._replace(contrast=sets.contrast[where], contrast_labels=sets.contrast_labels[where],
                           contrast_ids=sets.contrast_ids[where], contrast_weights=1 / times[where].double())  # fmt: skip
    kwargs = {**options(case, form), "backend": backend}
    loss, (grad_x, grad_y) = loss_and_grads(form, copies, **kwargs)
    summed = torch.zeros_like(sets.contrast).index_add_(0, where, grad_y)
    same((loss, [grad_x, summed]), loss_and_grads(form, sets, **kwargs))


@FORMS
def test_weights_of_0_leave_a_row_out(form: str, backend: str, device: str) -> None:
    """NaN or not, in two sets; in a set with itself it remains an anchor."""
    case = NAMED["ids-of-two-sets"]
    sets = make(case, torch.float64, device)
    assert sets.contrast is not None and sets.contrast_labels is not None and sets.contrast_ids is not None
    kwargs = {**options(case, form), "backend": backend}
    kept = torch.arange(len(sets.contrast), device=device) % 3 > 0
    absent = sets._replace(contrast=torch.where(kept[:, None], sets.contrast, math.nan), contrast_weights=kept.double())
    removed = sets._replace(contrast=sets.contrast[kept], contrast_labels=sets.contrast_labels[kept],
                            contrast_ids=sets.contrast_ids[kept])  # fmt: skip
    loss, (grad_x, grad_y) = loss_and_grads(form, absent, **kwargs)
    same((loss, [grad_x, grad_y[kept]]), loss_and_grads(form, removed, **kwargs))
    assert not grad_y[~kept].any()

    alone = make(NAMED["primes"], torch.float64, device)
    ids = torch.arange(len(alone.anchors), device=device)
    kept = ids % 3 > 0
    others = alone._replace(contrast=alone.anchors[kept], contrast_labels=alone.anchor_labels[kept],
                            anchor_ids=ids, contrast_ids=ids[kept])  # fmt: skip
    loss, (grad,) = loss_and_grads(form, alone._replace(contrast_weights=kept.float()), **kwargs)
    expected, (grad_x, grad_y) = loss_and_grads(form, others, **kwargs)
    same((loss, [grad]), (expected, [grad_x.index_add(0, ids[kept], grad_y)]))


@FORMS
def test_weights_of_0_leave_no_positives(form: str, backend: str, device: str) -> None:
    """Such an anchor is not in the mean; without any other the loss is 0, as it is if all anchors weigh 0."""
    sets, kwargs = make(NAMED["primes"], device=device), {**options(NAMED["primes"], form), "backend": backend}
    of_zero = sets.anchor_labels == 0
    zero = sets._replace(contrast_weights=(~of_zero).float())
    losses, stats = call(form, zero, **kwargs, reduction="none", return_stats=True)
    mean = call(form, zero, **kwargs)
    assert not losses[of_zero].any() and not stats.positives[of_zero].any() and stats.anchors == (~of_zero).sum()
    torch.testing.assert_close(mean, losses[~of_zero].mean())
    nothing = torch.zeros_like(losses.detach())
    for weights in ({"anchor_weights": nothing}, {"contrast_weights": nothing}):
        loss, grads = loss_and_grads(form, sets._replace(**weights), **kwargs)
        assert loss == 0 and not any(g.any() for g in grads)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
@pytest.mark.parametrize("name", ["primes", "two-sets"])
def test_weights_times_a_factor_shift_the_loss(name: str, scale: float, backend: str, device: str) -> None:
    """The loss of "all" changes by the logarithm of the factor, however far from 1, and its gradient does not."""
    case = NAMED[name]
    sets = make(case, device=device)
    weights = torch.full((case.columns or case.rows,), scale, device=device)
    kwargs = {**options(case, "all"), "backend": backend}
    loss, grads = loss_and_grads("all", sets._replace(contrast_weights=weights), **kwargs)
    expected, expected_grads = loss_and_grads("all", sets, **kwargs)
    same((loss - weights[0].log(), grads), (expected, expected_grads), 1e-5)


@FORMS
def test_half_precision_with_weights(form: str, backend: str, device: str) -> None:
    """Weights of classes whose sizes differ by far: the gradient keeps float16's digits."""
    skip_unsupported(backend, torch.float16)
    sets = make(Case("sizes", 120, 16, columns=90), torch.float16, device)
    assert sets.contrast_labels is not None
    labels = sets._replace(anchor_labels=sets.anchor_labels % 2, contrast_labels=sets.contrast_labels % 2)
    weights = torch.where(labels.contrast_labels == 0, 1e-4, 10.0)
    given = labels._replace(contrast_weights=weights)
    exact = given._replace(anchors=given.anchors.double(), contrast=given.contrast.double())
    kwargs = {"denominator": form}
    ours = loss_and_grads(form, given, **kwargs, backend=backend)
    truth = loss_and_grads(form, exact, **kwargs, backend="reference")
    for a, b in zip(ours[1], truth[1], strict=True):
        assert (a.double() - b).norm() < 2e-3 * b.norm()


def test_compile_with_weights(backend: str, device: str) -> None:
    torch.compiler.reset()

    def work(x: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        return mk.pixel_contrast_loss(
            x * 1.5, labels, anchor_weights=weights, contrast_weights=weights, backend=backend
        )

    sets = make(NAMED["weights"], device=device)
    x = sets.anchors.requires_grad_()
    results = []
    for function in (work, torch.compile(work, fullgraph=True, backend="aot_eager")):
        loss = function(x, sets.anchor_labels, sets.contrast_weights)
        results.append((loss, list(torch.autograd.grad(loss, x))))
    same(*results, 1e-6)
