"""Bad input to the contrast family: a clear error that names the argument and the value, or the documented answer."""

from __future__ import annotations

import math

import pytest
import torch
from contrast_cases import FORMS, NAMED, call, learning, loss_and_grads, make, options

import metricseg_kernels as mk

FAMILY = "contrast"
X, Y = torch.ones(6, 4), torch.ones(3, 4)
LX, LY = torch.zeros(6, dtype=torch.long), torch.zeros(3, dtype=torch.long)
PIXEL, MARGIN = mk.pixel_contrast_loss, mk.margin_contrast_loss
NAN, INF = math.nan, math.inf
WX, WY = torch.ones(6), torch.ones(3)

# what both losses refuse: positional arguments, keywords, exception, what the message says
SETS = [
    ("anchors-rank", (X[0], LX), {}, ValueError, r"anchors must be \[A, D\], got shape \(4,\)"),
    ("anchors-list", ([[1.0]], LX), {}, TypeError, "anchors must be a Tensor.*list"),
    ("anchors-integer", (X.long(), LX), {}, TypeError, "anchors must have dtype.*got int64"),
    ("labels-rank", (X, LX[:, None]), {}, ValueError, r"anchor_labels must be \[rows of anchors\], got shape \(6, 1\)"),
    ("labels-length", (X, LX[:5]), {}, ValueError, "anchor_labels.*per row of anchors, 6, got 5"),
    ("labels-float", (X, LX.float()), {}, TypeError, "anchor_labels must have dtype.*got float32"),
    ("labels-bool", (X, LX.bool()), {}, TypeError, "anchor_labels must have dtype.*got bool"),
    ("labels-int16", (X, LX.short()), {}, TypeError, "anchor_labels must have dtype.*got int16"),
    ("labels-list", (X, [0] * 6), {}, TypeError, "anchor_labels must be a Tensor.*list"),
    ("labels-device", (X, LX.to("meta")), {}, ValueError, "anchor_labels is on meta, anchors on cpu"),
    ("contrast-alone", (X, LX, Y), {}, ValueError, "contrast is given without contrast_labels"),
    ("contrast-labels-alone", (X, LX, None, LY), {}, ValueError, "contrast_labels is given without contrast"),
    ("contrast-rank", (X, LX, Y[0], LY), {}, ValueError, r"contrast must be \[M, D\], got shape \(4,\)"),
    ("contrast-channels", (X, LX, Y[:, :3], LY), {}, ValueError, "contrast must have the D of anchors, 4, got 3"),
    ("contrast-dtype", (X, LX, Y.double(), LY), {}, TypeError, "contrast must have the dtype of anchors.*got torch.float64"),
    ("contrast-device", (X, LX, Y.to("meta"), LY), {}, ValueError, "contrast is on meta, anchors on cpu"),
    ("contrast-labels-length", (X, LX, Y, LX), {}, ValueError, "contrast_labels.*per row of contrast, 3, got 6"),
    ("contrast-labels-dtype", (X, LX, Y, LY.float()), {}, TypeError, "contrast_labels must have dtype.*got float32"),
    ("contrast-labels-device", (X, LX, Y, LY.to("meta")), {}, ValueError, "contrast_labels is on meta, contrast on cpu"),
    ("ids-length", (X, LX), {"anchor_ids": LY}, ValueError, "anchor_ids.*per row of anchors, 6, got 3"),
    ("ids-dtype", (X, LX), {"anchor_ids": LX.float()}, TypeError, "anchor_ids must have dtype.*got float32"),
    ("ids-device", (X, LX), {"anchor_ids": LX.to("meta")}, ValueError, "anchor_ids is on meta"),
    ("ids-one-side", (X, LX, Y, LY), {"anchor_ids": LX}, ValueError, "contrast_ids go together"),
    ("ids-other-side", (X, LX, Y, LY), {"contrast_ids": LY}, ValueError, "anchor_ids and contrast_ids go together"),
    ("ids-without-set", (X, LX), {"contrast_ids": LX}, ValueError, "contrast_ids is given without contrast"),
    ("contrast-ids-length", (X, LX, Y, LY), {"anchor_ids": LX, "contrast_ids": LX}, ValueError, "contrast_ids.*3, got 6"),
    ("backend", (X, LX), {"backend": "gpu"}, ValueError, "backend must be one of.*'gpu'"),
    ("backend-elsewhere", (X, LX), {"backend": "cuda"}, RuntimeError, "backend 'cuda' can't run here"),
]  # fmt: skip

# what one of them refuses: loss, keywords, what the message says
OPTIONS = [
    *(("temperature", PIXEL, {"temperature": v}, f"temperature must be finite and > 0, got {v}")
      for v in (0.0, -0.1, NAN, INF)),
    *(("base_temperature", PIXEL, {"base_temperature": v}, f"base_temperature must be finite and > 0, got {v}")
      for v in (0.0, -1.0, NAN, INF)),
    ("denominator", PIXEL, {"denominator": "both"}, "denominator must be one of.*'negatives', 'all'.*got 'both'"),
    ("reduction", PIXEL, {"reduction": "avg"}, "reduction must be one of.*got 'avg'"),
    *(("margin", MARGIN, {"margin": v}, f"margin must be finite and > 0, got {v}") for v in (0.0, -1.0, NAN, INF)),
    *(("positive_margin", MARGIN, {"positive_margin": v}, f"positive_margin must be finite and >= 0, got {v}")
      for v in (-0.5, NAN, INF)),
    *(("power", MARGIN, {"power": v}, f"power must be 1 or 2, got {v}") for v in (0, 3, 1.5)),
    ("average", MARGIN, {"average": "mean"}, "average must be one of.*got 'mean'"),
]  # fmt: skip


# weights: name, value, whether with a contrast set, exception, what the message says
WEIGHTS = [
    ("anchor_weights", WX[:, None], False, ValueError, r"anchor_weights must be \[rows of anchors\], got shape \(6, 1\)"),
    ("anchor_weights", WY, True, ValueError, "anchor_weights.*per row of anchors, 6, got 3"),
    ("contrast_weights", WY, False, ValueError, "contrast_weights.*per row of anchors, 6, got 3"),
    ("contrast_weights", WX, True, ValueError, "contrast_weights.*per row of contrast, 3, got 6"),
    ("contrast_weights", [1.0], False, TypeError, r"contrast_weights must be a Tensor \[rows of anchors\], got list"),
    ("contrast_weights", WX.double(), False, TypeError, "contrast_weights must have dtype float32, got float64"),
    ("anchor_weights", LX, False, TypeError, "anchor_weights must have dtype float32, got int64"),
    ("anchor_weights", WX.to("meta"), False, ValueError, "anchor_weights is on meta, anchors on cpu"),
    ("contrast_weights", WY.clone().requires_grad_(), True, ValueError, "contrast_weights requires grad"),
    *((name, torch.tensor([1.0, value, 2.0, 1, 1, 1]), False, ValueError, f"{name} must be finite and >= 0, got.*{value}")
      for name in ("anchor_weights", "contrast_weights") for value in (-0.5, NAN, INF)),
]  # fmt: skip


@pytest.mark.parametrize("name, value, two, error, says", WEIGHTS)
def test_bad_weights(name, value, two, error, says) -> None:
    with pytest.raises(error, match=says):
        PIXEL(X, LX, *((Y, LY) if two else ()), **{name: value})


@pytest.mark.parametrize("loss", [PIXEL, MARGIN], ids=lambda f: f.__name__)
@pytest.mark.parametrize("args, kwargs, error, says", [pytest.param(*row[1:], id=row[0]) for row in SETS])
def test_bad_sets(loss, args, kwargs, error, says) -> None:
    with pytest.raises(error, match=says):
        loss(*args, **kwargs)


@pytest.mark.parametrize("loss, kwargs, says", [pytest.param(*row[1:], id=f"{row[0]}-{next(iter(row[2].values()))}")
                                               for row in OPTIONS])  # fmt: skip
def test_bad_options(loss, kwargs, says) -> None:
    for contrast in ((), (Y, LY)):
        with pytest.raises(ValueError, match=says):
            loss(X, LX, *contrast, **kwargs)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ["primes", "two-sets"])
@pytest.mark.parametrize("form", FORMS)
def test_non_finite_features_return(form: str, name: str, value: float, backend: str, device: str) -> None:
    """A NaN comes out as NaN; infinities return too."""
    case = NAMED[name]
    for side in ("anchors", "contrast") if case.columns else ("anchors",):
        sets = make(case, device=device)
        getattr(sets, side)[3, 1] = value
        loss, grads = loss_and_grads(form, sets, **options(case, form), backend=backend)
        assert all(g.shape == s.shape for g, s in zip(grads, (sets.anchors, sets.contrast), strict=False))
        if math.isnan(value):
            assert loss.isnan()
            assert any(g.isnan().any() for g in grads)


@pytest.mark.parametrize("form", FORMS)
def test_a_nan_row_that_is_ignored_leaves_the_loss_alone(form: str, backend: str, device: str) -> None:
    for name in ("some-ignored", "two-sets-square"):
        case = NAMED[name]
        clean, dirty = make(case, device=device), make(case, device=device)
        for features, labels in ((dirty.anchors, dirty.anchor_labels), (dirty.contrast, dirty.contrast_labels)):
            if features is not None:
                features[labels == case.ignore_index] = NAN
        kwargs = {**options(case, form), "backend": backend}
        for got, expected in zip(*(loss_and_grads(form, s, **kwargs) for s in (dirty, clean)), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.kernels
def test_double_backward_says_what_to_do(form: str, backend: str, device: str) -> None:
    for name in ("primes", "two-sets"):
        case = NAMED[name]
        sets = learning(make(case, device=device))
        for scale in (1.0, sets.anchors.sum()):  # a gradient that is a constant, and one that depends on the rows
            loss = call(form, sets, **options(case, form), backend=backend) * scale
            with pytest.raises(RuntimeError, match="backend='reference'"):
                torch.autograd.grad(loss, sets.anchors, create_graph=True)[0].sum().backward()


def test_nothing_to_compare_is_zero_with_zero_gradient(backend: str, device: str) -> None:
    """A crop full of ignore, an empty sample, no positives, no negatives: 0, where published code gives NaN or fails."""
    for name in ("no-rows", "no-anchors", "no-contrast", "nothing", "one-row", "ignored", "anchors-ignored",
                 "contrast-ignored", "apart"):  # fmt: skip
        for form in ("negatives", "all"):
            loss, grads = loss_and_grads(form, make(NAMED[name], device=device), backend=backend)
            assert loss == 0 and not any(g.any() for g in grads), (name, form)
    for name in ("one-class", "own-classes", "one-class-each"):
        loss, grads = loss_and_grads("negatives", make(NAMED[name], device=device), backend=backend)
        assert loss == 0 and not any(g.any() for g in grads), name


def test_no_positives_can_be_seen(backend: str, device: str) -> None:
    """A batch without positives gives 0; the statistics say that it was not learned from (PML#744)."""
    sets = make(NAMED["own-classes"], device=device)
    loss, stats = call("all", sets, return_stats=True, backend=backend)
    assert loss == 0 and stats.anchors == 0 and not stats.positives.any()


@pytest.mark.parametrize("loss", [mk.pixel_contrast_loss, mk.margin_contrast_loss])
def test_the_label_that_takes_no_part(loss):
    """None is no label, and the older name of the argument works with a warning."""
    x, labels = torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 2])
    with pytest.warns(
        DeprecationWarning, match="ignore_label .* removed in metricseg 0.2.0; use ignore_index"
    ) as warned:
        old = loss(x, labels, ignore_label=2)
    assert torch.equal(old, loss(x, labels, ignore_index=2))
    assert [warning.filename for warning in warned] == [__file__]
    torch.testing.assert_close(old, loss(x[:4], labels[:4]))
    assert torch.equal(loss(x, labels - 1, ignore_index=None), loss(x, labels))
    with pytest.raises(TypeError, match="ignore_index must be an int or None, got 'auto'"):
        loss(x, labels, ignore_index="auto")
