"""What the ops of the contrast family owe beyond their numbers: to autograd, compilers, memory and threads."""

from __future__ import annotations

import contrast_cases
import pytest
import torch
from contrast_cases import (
    CASE_PARAMS,
    FORMS,
    NAMED,
    Case,
    Sets,
    call,
    double,
    learning,
    loss_and_grads,
    make,
    options,
)
from gradients import gradcheck
from guard import Guarded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from threads import each_of
from tolerances import FLOOR_PARAMS, FLOORS, skip_unsupported
from torch import Tensor

import metricseg_kernels as mk
from metricseg_kernels.contrast import forms, op
from metricseg_kernels.engines.row_pairs.rows import dense_ranks

FAMILY = "contrast"
ALONE = Case("alone", 7, 3, classes=3, labels="some", temperature=0.5, margin=1.3)
TWO = Case("two", 5, 3, columns=6, classes=2, labels="some", ids="clash", temperature=0.5, margin=1.3)
SMALL = [pytest.param(c, id=c.id) for c in (ALONE, TWO)]


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str, case: Case, backend: str, device: str) -> None:
    sets = make(case, torch.float64, device)
    features = [t.requires_grad_() for t in (sets.anchors, sets.contrast) if t is not None]
    variants = [{"power": p, "positive_margin": 0.4} for p in (1, 2)] if form == "margin" else [
        {"reduction": r, "base_temperature": 0.3} for r in ("mean", "none")]  # fmt: skip

    for variant in variants:
        kwargs = {**options(case, form), **variant, "backend": backend}

        def loss(x: Tensor, y: Tensor | None = None, kwargs=kwargs) -> Tensor:
            return call(form, sets._replace(anchors=x, contrast=y), **kwargs)

        gradcheck(loss, features, backend, device)


@pytest.mark.parametrize("case", SMALL)
@pytest.mark.parametrize("form", FORMS)
def test_gradgradcheck_of_the_reference(form: str, case: Case) -> None:
    sets = make(case, torch.float64)
    assert torch.autograd.gradgradcheck(
        lambda x: call(form, sets._replace(anchors=x), **options(case, form), backend="reference"),
        sets.anchors.requires_grad_(),
    )


def test_backward_twice_gives_the_same(backend: str, device: str) -> None:
    for form in FORMS:
        for name in ("primes", "two-sets"):
            sets = learning(make(NAMED[name], device=device))
            loss = call(form, sets, backend=backend)
            first, second = (torch.autograd.grad(loss, sets.anchors, retain_graph=True)[0] for _ in range(2))
            assert torch.equal(first, second)


@pytest.mark.kernels
def test_opcheck_of_the_order(backend: str, device: str) -> None:
    weights = torch.rand(40, device=device)
    labels = [torch.arange(n, device=device) % 5 for n in (30, 40)]
    for ids in ([], labels):
        given = (labels, ids, weights, None, 0, torch.float32, backend)
        torch.library.opcheck(torch.ops.metricseg.sort_rows.default, given)
    torch.library.opcheck(torch.ops.metricseg.prototype_sets.default, (labels[0], labels[0], labels[1], 0, backend))


def arguments(sets: Sets, form: str, backend: str) -> tuple:
    """(the two sides, the form and its numbers) as the private ops take them."""
    features = [t for t in (sets.anchors, sets.contrast) if t is not None]
    labels = [t for t in (sets.anchor_labels, sets.contrast_labels) if t is not None]
    ids = [t for t in (sets.anchor_ids, sets.contrast_ids) if t is not None]
    sides = op.flat(op.sort_rows(features, labels, ids, -1, backend))
    chosen = forms.FORMS[form](0.5, 1.5) if form != "margin" else forms.Margin(1.3, 0.2, 2, False)
    return (*sides, *chosen.pack())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", SMALL)
@pytest.mark.kernels
def test_opcheck(form: str, case: Case, backend: str, device: str) -> None:
    sets = learning(make(case, device=device))
    given = arguments(sets, form, backend)
    forward, backward = torch.ops.metricseg.contrast_loss_fwd.default, torch.ops.metricseg.contrast_loss_bwd.default
    for reduce in (True, False):
        torch.library.opcheck(forward, (*given, reduce, False, False, backend))
    two = sets.contrast is not None
    if two and op.gradient_in_forward(backend, sets.anchors, sets.contrast, forms.FORMS[form]):
        torch.library.opcheck(forward, (*given, True, True, True, backend))
        torch.library.opcheck(forward, (given[0].detach(), *given[1:], True, False, True, backend))
    terms, counts, stats, _, _ = forward(*given, True, False, False, backend)
    torch.library.opcheck(torch.ops.metricseg.contrast_mean.default, (terms, counts, None, form != "margin", backend))
    sides = [t.detach() if isinstance(t, Tensor) else t for t in given]
    sums = forms.FORMS[form].sums
    expanded = torch.ones((), device=device).expand(case.rows, sums)
    for grad_terms in (torch.rand(sums, device=device), expanded):
        torch.library.opcheck(backward, (grad_terms, stats.detach(), *sides, True, two, backend))


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_compile_fullgraph(compiler: str, backend: str, device: str) -> None:
    """Ignored rows included: a compiled loss must not lose them silently."""
    if compiler == "inductor" and backend == "reference":
        pytest.skip("plain PyTorch")
    forms = FORMS if compiler == "aot_eager" else ("negatives",)

    def work(sets: Sets) -> Tensor:
        sets = sets._replace(anchors=sets.anchors * 1.5)
        return sum(call(form, sets, backend=backend) for form in forms)

    for name in ("some-ignored", "ids-of-two-sets")[: len(forms)]:
        torch._dynamo.reset()
        compiled = torch.compile(work, fullgraph=True, backend=compiler)
        results = []
        for function in (compiled, work):
            sets = learning(make(NAMED[name], device=device))
            loss = function(sets)
            leaves = [t for t in (sets.anchors, sets.contrast) if t is not None]
            results.append((loss, *torch.autograd.grad(loss, leaves)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)


def test_autocast_takes_the_features_as_they_are(backend: str, device: str) -> None:
    skip_unsupported(backend, torch.bfloat16)
    head = torch.nn.Linear(12, 8, device=device)
    x = torch.randn(30, 12, device=device, generator=None)
    labels = torch.arange(30, device=device) % 4
    for loss_fn in (mk.pixel_contrast_loss, mk.margin_contrast_loss):
        head.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            features = head(x)
            loss = loss_fn(features, labels, backend=backend)
        assert features.dtype == torch.bfloat16 and loss.dtype == torch.float32
        loss.backward()
        assert head.weight.grad.isfinite().all() and head.weight.grad.any()
        with torch.autocast(device, torch.bfloat16):
            exact = loss_fn(features.detach(), labels, backend=backend)
        assert exact == loss_fn(features.detach(), labels, backend=backend)  # products are not cast down


@pytest.mark.parametrize("case", CASE_PARAMS)
@pytest.mark.kernels
def test_margins_and_poison(case: Case, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element of every output is written, nothing beside it, and no input."""
    sets = make(case, device=device)

    def work() -> list[Tensor]:
        found = []
        for form in FORMS:
            loss, grads = loss_and_grads(form, sets, **options(case, form), backend=backend)
            found += [loss, *grads]
            if form != "margin":
                found += [call(form, sets, **options(case, form), reduction="none", backend=backend)]
        return found

    plain = work()
    guarded = Guarded(op.kernels(backend))
    monkeypatch.setattr(op, "kernels", lambda _: guarded)
    watched = work()
    assert guarded.calls >= 6  # a loss and a gradient of each form, at least one call each, and two maps
    for a, b in zip(plain, watched, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["nineteen-classes", "two-sets", "many-channels"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.kernels
def test_same_bits_twice(form: str, name: str, backend: str, device: str) -> None:
    """With any number of threads; the library's matrix products round differently from number to number."""
    sets = make(NAMED[name], device=device)
    for _ in each_of(1, 2, 3) if backend == "cpu" else range(1):
        first, second = (loss_and_grads(form, sets, **options(NAMED[name], form), backend=backend) for _ in range(2))
        assert torch.equal(first[0], second[0])
        assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@pytest.mark.parametrize("dtype", [d for d in FLOOR_PARAMS if d.values[0] != torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_loss_scaling_survives_half_precision(form: str, dtype: torch.dtype, backend: str, device: str) -> None:
    """A small gradient, scaled by 65536 as a GradScaler does, must not pass through fp16 unscaled."""
    skip_unsupported(backend, dtype)
    for case in (Case("scaled", 120, 16, magnitude=1e-3, temperature=10.0, margin=2e-3, ids=None),
                 Case("scaled-two", 120, 16, columns=90, magnitude=1e-3, temperature=10.0, margin=2e-3)):  # fmt: skip
        sets = make(case, dtype, device)
        results = []
        for s, b in ((sets, backend), (double(sets), "reference")):
            s = learning(s)
            (call(form, s, **options(case, form), backend=b) * 65536.0).backward()
            results.append([t.grad.double().cpu() for t in (s.anchors, s.contrast) if t is not None])
        for got, exact in zip(*results, strict=True):
            torch.testing.assert_close(got, exact, rtol=FLOORS[dtype] * 10, atol=exact.abs().max() * FLOORS[dtype] * 2)


@pytest.mark.parametrize("columns", [None, 2], ids=["self", "two-sets"])
@pytest.mark.parametrize("form", ["negatives", "margin"])
def test_memory_grows_with_the_rows_not_with_the_pairs(form: str, columns: int | None, fresh_processes) -> None:
    """Twice the rows take twice the extra memory, where the matrix of all pairs would take four times."""
    once, twice = (
        fresh_processes.peak(contrast_cases.self_contrast_step, form, rows, columns and rows, 16)
        for rows in (3072, 6144)
    )
    assert twice < 2.3 * once + (1 << 20)
    assert twice < 6144 * 6144 * 4 / 3


def test_ranks_are_dense_and_shared() -> None:
    first, second = dense_ranks(torch.tensor([7, -(2**63), 7, 2**63 - 1]), torch.tensor([200, 7], dtype=torch.uint8))
    assert first.tolist() == [1, 0, 1, 3] and second.tolist() == [2, 1]
    assert [t.numel() for t in dense_ranks(torch.empty(0, dtype=torch.long), torch.tensor([3]))] == [0, 1]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(0, 90),
    columns=st.one_of(st.none(), st.integers(0, 90)),
    dim=st.integers(1, 40),
    classes=st.integers(1, 12),
    form=st.sampled_from(FORMS),
    power=st.sampled_from([1, 2]),
    average=st.sampled_from(["pairs", "nonzero"]),
    labels=st.sampled_from(["random", "some", "sorted", "own"]),
    label_dtype=st.sampled_from([torch.uint8, torch.int32, torch.int64]),
    ids=st.sampled_from([None, "views", "clash"]),
    features=st.sampled_from(["unit", "gauss", "duplicates", "zeros"]),
    layout=st.sampled_from(["rows", "strided", "transposed"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_any_shape_agrees_with_the_reference(
    rows, columns, dim, classes, form, power, average, labels, label_dtype, ids, features, layout, dtype, seed
) -> None:
    case = Case(
        str(seed), rows, dim, columns, classes, labels, "some", label_dtype, 0, 255, ids, features, layout,
        temperature=0.5, margin=1.1, positive_margin=0.05, power=power, average=average,
    )  # fmt: skip
    if features == "duplicates" and columns is not None and columns > rows:
        case = case._replace(columns=rows)
    sets = make(case, dtype)
    ours, reference = (loss_and_grads(form, sets, **options(case, form), backend=b) for b in (None, "reference"))
    torch.testing.assert_close(ours[0], reference[0], rtol=2e-5, atol=1e-6)
    for a, b in zip(ours[1], reference[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=5e-6)
