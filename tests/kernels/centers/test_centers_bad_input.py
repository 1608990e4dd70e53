"""Bad input to the centers family: a clear error that names the argument and the value, or the documented answer."""

from __future__ import annotations

import math
import re

import pytest
import torch
from centers_cases import JOBS, METRICS, NAMED, Case, learning, make, run
from tolerances import relative_error

import metricseg_kernels as mk
from metricseg_kernels.core import checks

FAMILY = "centers"
X, W, OWN = torch.ones(2, 4, 3, 5), torch.ones(6, 4), torch.ones(2, 6, 4)
LOGITS, LABELS = torch.ones(2, 6, 3, 5), torch.zeros(2, 3, 5, dtype=torch.long)
THERE = torch.ones(6, dtype=torch.bool)
NAN, INF = math.nan, math.inf
SIMILARITY, CENTERS, PULL, PUSH = mk.center_similarity, mk.class_centers, mk.center_pull, mk.center_push

# function, positional arguments, keywords, exception, what the message says
BAD = [
    ("features-rank", SIMILARITY, (X[0], W), {}, ValueError, r"features must be \[B, C, h, w\], got shape \(4, 3, 5\)"),
    ("features-list", SIMILARITY, ([[1.0]], W), {}, TypeError, "features must be a Tensor.*list"),
    ("features-integer", SIMILARITY, (X.long(), W), {}, TypeError, "features must have dtype.*got int64"),
    ("centers-rank", SIMILARITY, (X, W[0]), {}, ValueError, r"centers must be \[K, C\] or \[B, K, C\], got shape \(4,\)"),
    ("centers-rank-4", SIMILARITY, (X, X), {}, ValueError, r"centers must be \[K, C\] or.*\(2, 4, 3, 5\)"),
    ("centers-list", SIMILARITY, (X, [[1.0]]), {}, TypeError, "centers must be a Tensor.*list"),
    ("centers-integer", SIMILARITY, (X, W.int()), {}, TypeError, "centers must have dtype.*got int32"),
    ("centers-integer-own", SIMILARITY, (X, OWN.int()), {}, TypeError, "centers must have dtype.*got int32"),
    ("centers-none", SIMILARITY, (X, W[:0]), {}, ValueError, r"centers must hold at least one class, got shape \(0, 4\)"),
    ("centers-channels", SIMILARITY, (X, W[:, :3]), {}, ValueError, r"centers \(6, 3\) and features \(2, 4, 3, 5\) differ in channels"),
    ("centers-channels-own", SIMILARITY, (X, OWN[..., 1:]), {}, ValueError, r"centers \(2, 6, 3\).*differ in channels"),
    ("centers-batch", SIMILARITY, (X, OWN[:1]), {}, ValueError, r"centers \(1, 6, 4\) and features \(2, 4, 3, 5\) differ in images"),
    ("centers-device", SIMILARITY, (X, W.to("meta")), {}, ValueError, "centers is on meta, features on cpu"),
    ("centers-float64", SIMILARITY, (X, W.double()), {}, TypeError, "centers is torch.float64, features torch.float32; both"),
    ("features-float64", SIMILARITY, (X.double(), W), {}, TypeError, "centers is torch.float32, features torch.float64; both"),
    ("metric", SIMILARITY, (X, W), {"metric": "l2"}, ValueError, "metric must be one of.*'cosine'.*got 'l2'"),
    *((f"scale-{v}", SIMILARITY, (X, W), {"scale": v}, ValueError, f"scale must be finite and >= 0, got {v}")
      for v in (-1.0, NAN, INF, -INF)),
    ("scale-0", SIMILARITY, (X, W), {"scale": 0.0}, ValueError, "scale must be > 0, got 0"),
    ("pull-rank", SIMILARITY, (X, W), {"pull_labels": LABELS[0]}, ValueError, r"pull_labels must be \[B, h, w\], got shape \(3, 5\)"),
    ("pull-size", SIMILARITY, (X, W), {"pull_labels": LABELS[..., 1:]}, ValueError, r"pull_labels \(2, 3, 4\) and features"),
    ("pull-float", SIMILARITY, (X, W), {"pull_labels": LABELS.float()}, TypeError, "pull_labels must have dtype.*float32"),
    ("pull-device", SIMILARITY, (X, W), {"pull_labels": LABELS.to("meta")}, ValueError, "pull_labels is on meta, features on cpu"),
    *((f"pull-{m}", SIMILARITY, (X, W), {"pull_labels": LABELS, "metric": m}, ValueError, f"pull_labels needs.*'cosine', got '{m}'")
      for m in ("dot", "euclidean")),
    ("backend", SIMILARITY, (X, W), {"backend": "gpu"}, ValueError, "backend must be one of.*'gpu'"),
    ("backend-elsewhere", SIMILARITY, (X, W), {"backend": "cuda"}, RuntimeError, "backend 'cuda' can't run here: it runs on cuda tensors"),
    ("pull-features", PULL, (X[0], W, LABELS), {}, ValueError, r"features must be \[B, C, h, w\]"),
    ("pull-labels-rank", PULL, (X, W, LOGITS), {}, ValueError, r"labels must be \[B, h, w\], got shape \(2, 6, 3, 5\)"),
    ("pull-labels-size", PULL, (X, W, LABELS[:1]), {}, ValueError, r"^labels \(1, 3, 5\) and features \(2, 4, 3, 5\) differ"),
    ("pull-labels-bool", PULL, (X, W, LABELS.bool()), {}, TypeError, "labels must have dtype.*got bool"),
    ("pull-centers", PULL, (X, W[:, :2], LABELS), {}, ValueError, r"centers \(6, 2\).*differ in channels"),
    ("pull-centers-list", PULL, (X, None, LABELS), {}, TypeError, "centers must be a Tensor.*NoneType"),
    ("means-features", CENTERS, (X[0], LOGITS), {}, ValueError, r"features must be \[B, C, h, w\], got shape \(4, 3, 5\)"),
    ("assignment-rank", CENTERS, (X, LOGITS[0]), {}, ValueError, r"assignment must be logits \[B, K, h, w\] or labels.*\(6, 3, 5\)"),
    ("assignment-list", CENTERS, (X, [1]), {}, TypeError, "assignment must be a Tensor.*list"),
    ("assignment-size", CENTERS, (X, LOGITS[..., :4]), {}, ValueError, r"assignment \(2, 6, 3, 4\) and features \(2, 4, 3, 5\) differ"),
    ("assignment-batch", CENTERS, (X, LOGITS[:1]), {}, ValueError, r"assignment \(1, 6, 3, 5\) and features.*differ in images"),
    ("assignment-float64", CENTERS, (X, LOGITS.double()), {}, TypeError, "assignment is torch.float64, features torch.float32"),
    ("assignment-device", CENTERS, (X, LOGITS.to("meta")), {}, ValueError, "assignment is on meta, features on cpu"),
    ("assignment-classes", CENTERS, (X, LOGITS), {"num_classes": 7}, ValueError, "num_classes is 7, but assignment holds.*6 classes"),
    ("assignment-none", CENTERS, (X, LOGITS[:, :0]), {}, ValueError, "num_classes must be in .1, 65536., got 0"),
    ("labels-alone", CENTERS, (X, LABELS), {}, ValueError, "num_classes is needed with labels, got None"),
    *((f"num-classes-{v}", CENTERS, (X, LABELS), {"num_classes": v}, ValueError, f"num_classes must be in .* got {v}")
      for v in (0, -1, 2**31)),
    *((f"num-classes-{v}", CENTERS, (X, LABELS), {"num_classes": v}, TypeError, "num_classes must be an int")
      for v in (2.0, True)),
    ("labels-rank", CENTERS, (X, LABELS[0]), {"num_classes": 6}, ValueError, r"assignment must be \[B, h, w\], got shape \(3, 5\)"),
    ("labels-size", CENTERS, (X, LABELS[:, 1:]), {"num_classes": 6}, ValueError, r"assignment \(2, 2, 5\) and features"),
    ("labels-int16", CENTERS, (X, LABELS.short()), {"num_classes": 6}, TypeError, "assignment must have dtype.*got int16"),
    ("labels-device", CENTERS, (X, LABELS.to("meta")), {"num_classes": 6}, ValueError, "assignment is on meta"),
    ("average", CENTERS, (X, LOGITS), {"average": "sum"}, ValueError, "average must be one of.*'mass', 'area'.*got 'sum'"),
    ("means-backend", CENTERS, (X, LOGITS), {"backend": "gpu"}, ValueError, "backend must be one of.*'gpu'"),
    ("push-rank", PUSH, (X,), {}, ValueError, r"centers must be \[K, C\] or \[B, K, C\], got shape \(2, 4, 3, 5\)"),
    ("push-integer", PUSH, (W.long(),), {}, TypeError, "centers must have dtype.*got int64"),
    ("push-none", PUSH, (W[:0],), {}, ValueError, r"at least one class, got shape \(0, 4\)"),
    ("present-rank", PUSH, (OWN, THERE), {}, ValueError, r"present must be \[B, K\], got shape \(6,\)"),
    ("present-dtype", PUSH, (W, THERE.float()), {}, TypeError, "present must have dtype bool, got float32"),
    ("present-size", PUSH, (W, THERE[1:]), {}, ValueError, r"present \(5,\) and centers \(6, 4\) differ"),
    ("present-device", PUSH, (W, THERE.to("meta")), {}, ValueError, "present is on meta, centers on cpu"),
    *((f"margin-{v}", PUSH, (W,), {"margin": v}, ValueError, f"margin must be finite.*got {v}") for v in (NAN, INF, -INF)),
]  # fmt: skip


@pytest.mark.parametrize("function, args, kwargs, error, says", [pytest.param(*row[1:], id=row[0]) for row in BAD])
def test_bad_arguments(function, args, kwargs, error, says) -> None:
    with pytest.raises(error, match=says):
        function(*args, **kwargs)


CALLS = {
    "assignment": lambda x, labels, **kw: mk.class_centers(x, labels, num_classes=6, **kw),
    "pull_labels": lambda x, labels, **kw: mk.center_similarity(x, W.to(x), pull_labels=labels, **kw)[1],
    "labels": lambda x, labels, **kw: mk.center_pull(x, W.to(x), labels, **kw),
}


@pytest.mark.parametrize("label", [6, 200, -1])
@pytest.mark.parametrize("name", CALLS)
def test_label_out_of_range(name: str, label: int, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU a ValueError with the value; on CUDA NaN, and the ValueError with METRICSEG_VALIDATE=1."""
    labels, x = LABELS.to(device).clone(), X.to(device)
    labels[0, 0, 0] = labels[0, 2, 4] = label
    says = f"^{name} holds 2 labels that are neither ignore_index (255) nor in [0, 6): for example {label}"
    monkeypatch.setenv("METRICSEG_VALIDATE", "1")
    with pytest.raises(ValueError, match=re.escape(says).replace("\\^", "^")):
        CALLS[name](x, labels, backend=backend)
    if device == "cuda":
        monkeypatch.delenv("METRICSEG_VALIDATE")
        result = CALLS[name](x, labels, backend=backend)
        assert result[0].isnan().all() and result[1].isfinite().all() if name == "assignment" else result.isnan()


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", checks.LABELS, ids=str)
def test_label_out_of_range_where_nothing_is_checked(
    dtype: torch.dtype, backend: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on CUDA: NaN centers of the image, and no gradient from it; a NaN pull, with the gradient of other images."""
    if backend == "cpu":
        pytest.skip("labels are checked on the CPU")
    monkeypatch.setattr(checks, "validates", lambda _: False)
    case = NAMED["ade20k-full-own"]._replace(classes=40, channels=70, label_dtype=dtype)
    inputs = make(case, device=device)
    for label in (200, 40) if dtype == torch.uint8 else (-1, 2**31 - 1):
        inputs.labels[0, 0, 1] = label
        for name in ("hard", "hard-area", "pull"):
            ours, theirs = (run(JOBS[name], inputs, case, backend=b) for b in (backend, "reference"))
            for a, b in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
                torch.testing.assert_close(a, b, equal_nan=True)
            bad = ours[0][0] if name == "pull" else ours[0][0][0]
            assert bad.isnan().all() and not ours[1][0][0].any() and ours[1][0][1].any()


def test_label_255_is_out_of_range_where_it_is_not_ignored(backend: str, device: str) -> None:
    labels = LABELS.to(device, torch.uint8).clone()
    labels[0, 0, 0] = 255
    for call in CALLS.values():
        call(X.to(device), labels, backend=backend)
        if device == "cpu":
            with pytest.raises(ValueError, match=r"ignore_index \(254\).*for example 255"):
                call(X, labels, ignore_index=254, backend=backend)


def test_an_ignored_label_that_is_a_class(backend: str, device: str) -> None:
    """ignore_index in [0, K): its pixels are in no class, and its class is absent."""
    x = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(30, device=device).view(2, 3, 5) % 6
    kwargs = {"num_classes": 6, "return_present": True, "backend": backend}
    centers, present = mk.class_centers(x, labels, ignore_index=2, **kwargs)
    all_centers, _ = mk.class_centers(x, labels, **kwargs)
    assert not present[:, 2].any() and not centers[:, 2].any()
    others = torch.arange(6) != 2
    assert present[:, others].all() and torch.equal(centers[:, others], all_centers[:, others])


@pytest.mark.parametrize("name, value", [*((name, NAN) for name in (*METRICS, "pulled")), ("cosine", INF)])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_bad_pixel_keeps_to_itself(name: str, layout: str, value: float, backend: str, device: str) -> None:
    """Its logits, its gradient and that of the centers are NaN; all other pixels are as they were."""
    case = NAMED["primes"]._replace(layout=layout)
    clean, dirty = make(case, device=device), make(case, device=device)
    dirty.labels[1, 3, 4] = clean.labels[1, 3, 4] = case.ignore_index
    dirty.features[1, 5, 3, 4] = value
    elsewhere = torch.ones(2, 1, 7, 11, dtype=torch.bool, device=device)
    elsewhere[1, :, 3, 4] = False
    (logits, *pull), (grad, to_centers) = run(JOBS[name], dirty, case, backend=backend)
    (expected, *true_pull), (true_grad, _) = run(JOBS[name], clean, case, backend=backend)
    for ours, theirs in ((logits, expected), (grad, true_grad)):
        assert relative_error(torch.where(elsewhere, ours, 0.0), torch.where(elsewhere, theirs, 0.0)) < 1e-5
    bad = (1, slice(None), 3, 4)
    assert logits[bad].isnan().all() and to_centers.isnan().any()
    assert grad[bad].isnan().any() != (name == "dot")  # where it is W^T G, without the pixel
    assert pull == true_pull or torch.allclose(pull[0], true_pull[0])


def test_a_labelled_bad_pixel_spoils_the_pull(backend: str, device: str) -> None:
    case = NAMED["primes"]._replace(labels="full")
    inputs = make(case, device=device)
    inputs.features[1, 5, 3, 4] = NAN
    (pull,), (grad,) = run(JOBS["pull"], inputs, case, backend=backend)
    assert pull.isnan() and grad[1, :, 3, 4].isnan().any()


def test_a_bad_pixel_in_class_centers(backend: str, device: str) -> None:
    """At an ignored pixel it changes nothing; else it stays in its image and its channel."""
    case = NAMED["primes"]
    clean, dirty = make(case, device=device), make(case, device=device)
    dirty.features[1, 5, 3, 4] = NAN
    for label in (case.ignore_index, 7):
        clean.labels[1, 3, 4] = dirty.labels[1, 3, 4] = label
        (ours,), (grad,) = run(JOBS["hard"], dirty, case, backend=backend)
        (expected,), (true_grad,) = run(JOBS["hard"], clean, case, backend=backend)
        assert torch.equal(grad, true_grad)  # which no feature enters
        if label == 7:
            assert ours[1, 7, 5].isnan()
            ours[1, :, 5] = expected[1, :, 5]
        assert torch.equal(ours, expected)
    (ours,), (to_features, to_logits) = run(JOBS["soft"], dirty, case, backend=backend)
    assert torch.equal(ours.isnan().nonzero()[:, [0, 2]].unique(dim=0).cpu(), torch.tensor([[1, 5]]))
    assert ours[1, :, 5].isnan().all() and to_features[0].isfinite().all() and to_logits[0].isfinite().all()
    logits = make(case, device=device)
    logits.logits[1, 2, 3, 4] = NAN
    (ours,), (to_features, _) = run(JOBS["soft"], logits, case, backend=backend)
    assert ours[0].isfinite().all() and ours[1].isnan().all() and to_features[0].isfinite().all()


def test_logits_of_minus_infinity_are_no_members(backend: str, device: str) -> None:
    """A mask of classes: mass 0, absent, a zero center, and gradients without NaN."""
    inputs = learning(make(NAMED["primes"], device=device), ("features",))
    logits = inputs.logits.detach().clone()
    logits[:, 3] = -INF
    logits.requires_grad_()
    centers, present = mk.class_centers(inputs.features, logits, return_present=True, backend=backend)
    assert not present[:, 3].any() and present.sum() == 2 * 18 and not centers[:, 3].any()
    grads = torch.autograd.grad(centers.square().sum(), (inputs.features, logits))
    assert all(g.isfinite().all() for g in grads) and not grads[1][:, 3].any()


def test_zero_norm_is_like_nothing(backend: str, device: str) -> None:
    """Cosine 0 to everything, and a zero gradient; a pixel of norm 0 pulls with 1, and is not moved."""
    for name in ("zeros", "zeros-own"):
        case = NAMED[name]
        inputs = make(case, device=device)
        (logits, _), (to_features, to_centers) = run(JOBS["pulled"], inputs, case, backend=backend)
        assert not logits[..., ::3].any() and not logits[:, 0].any()
        assert not to_features[..., ::3].any() and not to_centers[..., 0, :].any()
        inputs.features.zero_()
        assert mk.center_pull(inputs.features, inputs.centers, inputs.labels, backend=backend) == 1


def test_nothing_labelled_is_zero_with_zero_gradient(backend: str, device: str) -> None:
    """A crop full of ignore; and one beside an image with classes, which counts as 0."""
    case = NAMED["ignored"]
    for empty in (case, NAMED["no-images"], NAMED["no-pixels-own"]):
        inputs = make(empty, device=device)
        for name in ("pull", "hard", "hard-area"):
            outputs, grads = run(JOBS[name], inputs, empty, backend=backend)
            assert not outputs[0].any() and not grads[0].any(), (empty.id, name)
    inputs = make(case._replace(id="half", labels="full"), device=device)
    alone = mk.center_pull(inputs.features[1:], inputs.centers, inputs.labels[1:], backend=backend)
    inputs.labels[0] = case.ignore_index
    both = mk.center_pull(inputs.features, inputs.centers, inputs.labels, backend=backend)
    torch.testing.assert_close(both, alone / 2)


def test_numbers_of_any_kind_are_taken(backend: str, device: str) -> None:
    """An int scale; labels at the ends of their dtypes as ignore_index."""
    case = Case("numbers", (1, 2, 3), 4, 3)
    inputs = make(case, device=device)
    ours, same = (mk.center_similarity(*inputs[:2], scale=s, backend=backend) for s in (7, 7.0))
    assert torch.equal(ours, same)
    for ignore in (-(2**63), 2**63 - 1):
        labels = torch.where(inputs.labels == 255, ignore, inputs.labels)
        a = mk.class_centers(inputs.features, labels, num_classes=3, ignore_index=ignore, backend=backend)
        b = mk.class_centers(inputs.features, inputs.labels, num_classes=3, backend=backend)
        assert torch.equal(a, b)
