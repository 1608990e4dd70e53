"""The rows, labels, ids and magnitudes that every backend of the contrast family is held against, and how a call is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from tolerances import assert_as_good, assert_gradient, skip_unsupported
from torch import Tensor

import metricseg_kernels as mk
from metricseg_kernels.contrast.arguments import Sets


class Case(NamedTuple):
    id: str
    rows: int  # A
    dim: int = 16  # D
    columns: int | None = None  # M; None: the set meets itself
    classes: int = 5
    labels: str = "random"  # random, some (a fifth ignored), ignored, one (class), own (class each), sorted
    column_labels: str = "random"  # as labels; or apart (none of the anchors')
    label_dtype: torch.dtype = torch.int64
    first_label: int = 0
    ignore_index: int = -1
    ids: str | None = None  # views (each id twice, with one label), clash (equal ids with other labels)
    features: str = "unit"  # unit (norm), gauss, duplicates (each row thrice), zeros (a third of norm 0)
    layout: str = (
        "rows"  # rows, strided, transposed, expanded (one anchor A times), overlapping (windows of one vector)
    )
    magnitude: float = 1.0
    temperature: float = 0.1
    base_temperature: float | None = None
    margin: float = 1.0
    positive_margin: float = 0.0
    power: int = 2
    average: str = "pairs"
    weights: str | None = (
        None  # of "negatives" and "all": random, wide (over 28 decades), zeros (of a class, and others)
    )


CASES = [
    Case("primes", 67, 13, classes=3),
    Case("powers-of-two", 128, 64, classes=4),
    Case("two-sets", 37, 24, columns=71),
    Case("two-sets-wide", 3, 16, columns=257, base_temperature=0.07),
    Case("two-sets-tall", 259, 8, columns=2, classes=2),
    Case("two-sets-square", 64, 32, columns=64, labels="some", column_labels="some"),
    Case("one-channel", 41, 1, features="gauss"),
    Case("three-channels", 41, 3, columns=29, power=1),
    Case("many-channels", 45, 130, classes=4),
    Case("no-channels", 9, 0, classes=2),
    Case("no-rows", 0, 8),
    Case("no-anchors", 0, 8, columns=7),
    Case("no-contrast", 7, 8, columns=0),
    Case("nothing", 0, 8, columns=0),
    Case("one-row", 1, 8),
    Case("one-anchor", 1, 8, columns=9, classes=2),
    Case("one-contrast-row", 9, 8, columns=1, classes=2),
    Case("one-class", 20, 8, labels="one"),
    Case("one-class-each", 20, 8, columns=11, labels="one", column_labels="one"),
    Case("own-classes", 23, 8, labels="own"),
    Case("two-of-each", 24, 8, labels="sorted", classes=12),
    Case("nineteen-classes", 150, 32, classes=19, labels="some"),
    Case("ignored", 20, 8, labels="ignored"),
    Case("anchors-ignored", 20, 8, columns=9, labels="ignored"),
    Case("contrast-ignored", 20, 8, columns=9, column_labels="ignored"),
    Case("apart", 20, 8, columns=9, column_labels="apart"),
    Case("some-ignored", 53, 16, labels="some", temperature=0.07, base_temperature=0.07),
    Case("ignore-0", 40, 16, ignore_index=0),
    Case("ignore-255", 40, 16, labels="some", ignore_index=255, label_dtype=torch.uint8),
    Case("uint8-255-takes-part", 40, 16, first_label=251, label_dtype=torch.uint8),
    Case("int32", 40, 16, labels="some", label_dtype=torch.int32, first_label=-(2**31)),
    Case("int32-high", 40, 16, columns=33, label_dtype=torch.int32, first_label=2**31 - 5),
    Case("int64-huge", 40, 16, labels="some", first_label=2**62, ignore_index=-(2**63)),
    Case("int64-far-apart", 40, 16, columns=20, classes=2, column_labels="some", first_label=-(2**63) + 1),
    Case("sorted", 65, 16, labels="sorted"),
    Case("ids-of-one-set", 40, 16, ids="views"),
    Case("ids-of-two-sets", 40, 16, columns=31, ids="views", labels="some"),
    Case("ids-with-other-labels", 40, 16, columns=31, ids="clash"),
    Case("ids-of-one-set-with-other-labels", 40, 16, ids="clash"),
    Case("strided", 40, 16, layout="strided"),
    Case("strided-two-sets", 40, 16, columns=23, layout="strided"),
    Case("transposed", 40, 16, layout="transposed"),
    Case("expanded", 40, 6, columns=23, layout="expanded"),
    Case("overlapping", 40, 8, columns=23, features="gauss", layout="overlapping", magnitude=0.4),
    Case("duplicates", 42, 16, features="duplicates"),
    Case("duplicates-power-1", 42, 16, features="duplicates", power=1, average="nonzero"),
    Case("duplicates-two-sets", 42, 16, columns=42, features="duplicates", classes=2, power=1),
    Case("zero-norm", 42, 16, features="zeros"),
    Case("zero-norm-two-sets", 30, 16, columns=21, features="zeros", power=1, margin=1.2),
    Case("tiny", 40, 16, magnitude=1e-4),
    Case("small", 40, 16, columns=23, magnitude=1e-2, margin=0.01),
    Case("large", 40, 16, features="gauss", magnitude=100.0, margin=500.0, positive_margin=100.0),
    Case("huge", 40, 16, features="gauss", magnitude=1e4, temperature=10.0, margin=5e4),
    Case("huge-unit", 40, 16, columns=27, magnitude=1e4, temperature=10.0, power=1),
    Case("cold", 40, 16, temperature=0.01, base_temperature=0.07),
    Case("cold-two-sets", 40, 16, columns=27, temperature=0.01),
    Case("hot", 40, 16, temperature=10.0, base_temperature=1.0),
    Case("margins", 40, 16, positive_margin=0.8, margin=1.5, average="nonzero"),
    Case("margins-power-1", 40, 16, columns=35, positive_margin=0.8, margin=1.5, average="nonzero", power=1),
    Case("margin-out-of-reach", 40, 16, margin=1e-3, average="nonzero"),
    Case("margin-over-all", 40, 16, margin=10.0, labels="some"),
    Case("weights", 67, 13, labels="some", weights="zeros"),
    Case("weights-two-sets", 37, 24, columns=71, labels="some", column_labels="some", weights="zeros"),
    Case("weights-ids", 40, 16, ids="views", weights="random"),
    Case("weights-ids-of-two-sets", 40, 16, columns=31, ids="views", labels="some", weights="zeros"),
    Case("weights-cold", 40, 16, temperature=0.01, base_temperature=0.07, weights="zeros"),
    Case("weights-cold-two-sets", 40, 16, columns=27, temperature=0.01, weights="random"),
    Case("weights-wide", 53, 16, temperature=0.03, weights="wide"),
]
NAMED = {c.id: c for c in CASES}
CASE_PARAMS = [pytest.param(c, id=c.id) for c in CASES]
EMPTY = {"no-rows", "no-anchors", "no-contrast", "nothing", "one-row", "ignored", "anchors-ignored", "contrast-ignored"}
FORMS = ("negatives", "all", "margin")


def make(case: Case, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Sets:
    """The sets of a case; the same numbers for every dtype up to rounding."""
    rng = torch.Generator().manual_seed(sum(map(ord, case.id)))
    rows = _features(case, case.rows, rng).to(dtype)
    labels = _labels(case, case.labels, case.rows, rng)
    anchor_ids = contrast_ids = None
    others = other_labels = None
    if case.columns is not None:
        others = _features(case, case.columns, rng)
        if case.features == "duplicates":
            others = rows.double()[: case.columns]
        others = _lay_out(others.to(dtype), case.layout).to(device)
        other_labels = _labels(case, case.column_labels, case.columns, rng).to(device)
    if case.ids is not None:
        anchor_ids = torch.arange(case.rows) // 2 * 7 - 3
        if case.columns is not None:
            contrast_ids = torch.arange(case.columns).flip(0) // 2 * 7 - 3
            contrast_ids = contrast_ids.to(device)
        if case.ids == "views":
            labels = labels[torch.arange(case.rows) // 2]
        anchor_ids = anchor_ids.to(device)
    rows = rows[:1].expand(rows.shape) if case.layout == "expanded" else _lay_out(rows, case.layout)
    sets = Sets(rows.to(device), labels.to(device), others, other_labels, anchor_ids, contrast_ids)
    return sets if case.weights is None else weighted(case, sets, rng)


def weighted(case: Case, sets: Sets, rng: torch.Generator) -> Sets:
    labels = sets.anchor_labels if sets.contrast_labels is None else sets.contrast_labels
    rows, columns = (torch.rand(len(v), generator=rng).to(v.device) for v in (sets.anchor_labels, labels))
    if case.weights == "wide":
        columns = 10.0 ** (28 * columns - 14)
    if case.weights == "zeros":
        rows[::4] = 0
        columns = torch.where((columns < 0.3) | (labels == case.first_label), 0.0, 3 * columns)
    return sets._replace(anchor_weights=rows, contrast_weights=columns)


def _features(case: Case, rows: int, rng: torch.Generator) -> Tensor:
    x = torch.randn(rows, case.dim, generator=rng, dtype=torch.float64)
    if case.features == "duplicates":
        x = x[torch.arange(rows) // 3]
    if case.features != "gauss":
        x = x / x.norm(dim=1, keepdim=True)
    if case.features == "zeros":
        x[::3] = 0
    return x * case.magnitude


def _labels(case: Case, kind: str, rows: int, rng: torch.Generator) -> Tensor:
    labels = torch.randint(case.classes, (rows,), generator=rng)
    if kind == "one":
        labels.fill_(1)
    if kind == "own":
        labels = torch.randperm(rows, generator=rng)
    if kind == "apart":
        labels += case.classes
    if kind == "sorted":
        labels = torch.arange(rows) * case.classes // max(rows, 1)
    labels += case.first_label
    if kind == "some":
        labels[torch.rand(rows, generator=rng) < 0.2] = case.ignore_index
    if kind == "ignored":
        labels.fill_(case.ignore_index)
    return labels.to(case.label_dtype)


def _lay_out(x: Tensor, layout: str) -> Tensor:
    if layout == "strided":
        wide = x.new_full((2 * x.shape[0], 3 * x.shape[1] + 1), torch.nan)
        wide[::2, 1::3] = x
        return wide[::2, 1::3]
    if layout == "transposed":
        return x.T.contiguous().T
    if layout == "overlapping":
        return x.reshape(-1)[: x.shape[0] + x.shape[1] - 1].clone().unfold(0, x.shape[1], 1)
    return x


def options(case: Case, form: str) -> dict[str, Any]:
    if form == "margin":
        names = ("margin", "positive_margin", "power", "average", "ignore_index")
    else:
        names = ("temperature", "base_temperature", "ignore_index")
    kwargs = {name: getattr(case, name) for name in names}
    return kwargs if form == "margin" else {**kwargs, "denominator": form}


def loss_of(form: str) -> Callable[..., Any]:
    return mk.margin_contrast_loss if form == "margin" else mk.pixel_contrast_loss


def call(form: str, sets: Sets, **kwargs: Any) -> Any:
    if form != "margin":
        kwargs = {"anchor_weights": sets.anchor_weights, "contrast_weights": sets.contrast_weights, **kwargs}
    return loss_of(form)(
        sets.anchors, sets.anchor_labels, sets.contrast, sets.contrast_labels,
        anchor_ids=sets.anchor_ids, contrast_ids=sets.contrast_ids, **kwargs,
    )  # fmt: skip


def learning(sets: Sets, learns: str = "both") -> Sets:
    """New leaves of the same layout, of which the anchors, the contrast rows or both require a gradient."""
    anchors = sets.anchors.detach().requires_grad_(learns != "contrast")
    contrast = sets.contrast
    return sets._replace(
        anchors=anchors, contrast=None if contrast is None else contrast.detach().requires_grad_(learns != "anchors")
    )


def loss_and_grads(
    form: str, sets: Sets, learns: str = "both", upstream: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, list[Tensor]]:
    sets = learning(sets, learns)
    loss = call(form, sets, **kwargs)
    leaves = [t for t in (sets.anchors, sets.contrast) if t is not None and t.requires_grad]
    grads = torch.autograd.grad(loss, leaves, None if upstream is None else upstream.to(loss))
    return loss.detach(), list(grads)


def double(sets: Sets) -> Sets:
    return Sets(*(t if t is None else t.cpu().double() if t.is_floating_point() else t.cpu() for t in sets))


def against_reference(
    form: str, case: Case, dtype: torch.dtype, backend: str, device: str, learns: str = "both",
    upstream: Tensor | None = None, **kwargs: Any,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """One call on the backend, in plain PyTorch, and in fp64; each held against the last."""
    skip_unsupported(backend, dtype)
    sets = make(case, dtype, device)
    kwargs = {**options(case, form), **kwargs}
    truth = loss_and_grads(form, double(sets), learns, upstream, **kwargs, backend="reference")
    plain = loss_and_grads(form, sets, learns, upstream, **kwargs, backend="reference")
    got = loss_and_grads(form, sets, learns, upstream, **kwargs, backend=backend)
    assert got[0].dtype == plain[0].dtype
    assert_as_good(got[0], plain[0], truth[0], dtype)
    for ours, simple, exact, leaf in zip(got[1], plain[1], truth[1], _leaves(sets, learns), strict=True):
        assert ours.dtype == dtype and ours.shape == leaf.shape
        assert_gradient(ours, simple, exact, dtype)
    return got


def _leaves(sets: Sets, learns: str) -> list[Tensor]:
    both = {"anchors": sets.anchors, "contrast": sets.contrast}
    return [t for name, t in both.items() if t is not None and learns in ("both", name)]


def self_contrast_step(form: str, rows: int, columns: int | None, dim: int) -> Callable[[], None]:
    """Loss and gradients of the cpu backend, made from nothing, for a fresh process that measures memory."""
    sets = learning(make(Case("memory", rows, dim, columns=columns, classes=19)))
    kwargs = options(Case("memory", rows), form)

    def step() -> None:
        call(form, sets, **kwargs, backend="cpu").backward()
        sets.anchors.grad = None
        if sets.contrast is not None:
            sets.contrast.grad = None

    return step


# what Triton's interpreter keeps: cases in fp32, and tests
INTERPRETED = (
    "two-sets",
    "primes",
    "zero-norm-two-sets",
    "no-contrast",
    "many-channels",
    "no-channels",
    "one-class",
    "ids-of-two-sets",
    "strided",
    "duplicates-power-1",
    "huge",
    "cold-two-sets",
    "margins",
    "weights",
    "weights-two-sets",
    "weights-cold",
)
INTERPRETED_TESTS = {"test_loss_and_gradients", "test_loss_per_anchor"}
# cases that run in other dtypes as well, if kernels are compiled
IN_EVERY_DTYPE = {
    "cold-two-sets",
    "duplicates",
    "huge",
    "huge-unit",
    "large",
    "many-channels",
    "margins-power-1",
    "nineteen-classes",
    "no-contrast",
    "one-channel",
    "primes",
    "some-ignored",
    "tiny",
    "two-sets",
    "weights",
    "weights-cold-two-sets",
    "weights-two-sets",
    "zero-norm",
}
