"""The centers family: the specification against its formulas written out, every backend against the specification."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from centers_cases import (
    CASE_PARAMS,
    CASES,
    EMPTY,
    JOBS,
    METRICS,
    NAMED,
    Case,
    Inputs,
    against_reference,
    double,
    make,
    run,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tolerances import FLOOR_PARAMS, assert_as_good, assert_gradient, relative_error, skip_unsupported
from torch import Tensor

import metricseg_kernels as mk

FAMILY = "centers"
PIXELS = [pytest.param(c, id=c.id) for c in CASES if c.id not in EMPTY]


def literal_similarity(x: Tensor, w: Tensor, metric: str, scale: float) -> Tensor:
    """As it is written where memory is no matter: normalized copies, one einsum; every difference of two vectors."""
    w = w.expand(len(x), *w.shape[-2:])
    if metric == "euclidean":
        return -scale * (x[:, None] - w[..., None, None]).square().sum(2)
    if metric == "cosine":
        x, w = F.normalize(x, dim=1), F.normalize(w, dim=2)
    return scale * torch.einsum("bchw,bkc->bkhw", x, w)


def pixels_of(labels: Tensor, case: Case) -> list[list[Tensor]]:
    """For each image and class, a mask of its pixels [h, w]."""
    known = labels != case.ignore_index
    return [[known[b] & (labels[b] == k) for k in range(case.classes)] for b in range(len(labels))]


def literal_pull(inputs: Inputs, case: Case) -> Tensor:
    """An image, a class, its pixels at a time."""
    cosines = literal_similarity(inputs.features, inputs.centers.detach(), "cosine", 1.0)
    images = []
    for b, masks in enumerate(pixels_of(inputs.labels, case)):
        present = [(1 - cosines[b, k][mask]).mean() for k, mask in enumerate(masks) if mask.any()]
        images.append(sum(present) / len(present) if present else 0 * cosines.sum())
    return torch.stack(images).mean()


def literal_centers(inputs: Inputs, case: Case, soft: bool, average: str) -> Tensor:
    """An image and a class at a time."""
    x, (batch, height, width) = inputs.features, case.size
    memberships = inputs.logits.exp() / inputs.logits.exp().sum(1, keepdim=True)
    masks = None if soft else pixels_of(inputs.labels, case)
    centers = []
    for b in range(batch):
        for k in range(case.classes):
            m = memberships[b, k] if masks is None else masks[b][k].to(x.dtype)
            total = m.sum() + 1e-6 if average == "mass" else height * width
            centers.append((m * x[b]).sum((1, 2)) / total)
    return torch.stack(centers).view(batch, case.classes, case.channels)


@pytest.mark.parametrize("case", PIXELS)
def test_reference_is_the_formula(case: Case) -> None:
    """Values, and the gradients that autograd finds for the formulas; of a vector of norm 0 ours is 0."""
    inputs = make(case, torch.float64)

    def literal(name: str, i: Inputs) -> Tensor | tuple[Tensor, Tensor]:
        if name in METRICS:
            return literal_similarity(i.features, i.centers, name, case.scale if name == "cosine" else 0.3)
        if name == "pulled":
            return literal_similarity(i.features, i.centers, "cosine", case.scale), literal_pull(i, case)
        if name == "pull":
            return literal_pull(i, case)
        return literal_centers(i, case, "soft" in name, "area" if "area" in name else "mass")

    for name, job in JOBS.items():
        expected, true_grads = run(job._replace(call=lambda i, c, n=name: literal(n, i)), inputs, case)
        got, grads = run(job, inputs, case, backend="reference")
        for ours, theirs in zip(got, expected, strict=True):
            assert relative_error(ours, theirs) < 1e-12, name
        for leaf, ours, theirs in zip(job.learn, grads, true_grads, strict=True):
            if case.zeros and name in ("cosine", "pulled", "pull"):
                zero = getattr(inputs, leaf).norm(dim=1 if leaf == "features" else -1, keepdim=True) == 0
                assert not (ours * zero).any()
                theirs = theirs.masked_fill(zero, 0.0)
            atol = 1e-13 * max(1.0, float(theirs.abs().max())) if theirs.numel() else 0
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", FLOOR_PARAMS)
@pytest.mark.parametrize("case", CASE_PARAMS)
@pytest.mark.parametrize("name", ["cosine", "soft", "hard"])
@pytest.mark.kernels
def test_values_and_gradients(name: str, case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    if (name, case.id) == ("soft", "one-pixel"):
        name = "soft-area"  # the mean of one pixel depends on no membership: its gradient is rounding
    outputs, grads = against_reference(name, case, dtype, backend, device)
    assert all(t.isfinite().all() for t in outputs + grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", [NAMED[n] for n in ("primes", "one-class", "odd-channels", "channels-last-own",
                                                     "strided", "zeros-own", "ignored", "absent", "no-images",
                                                     "no-pixels-own", "tiny", "huge")], ids=lambda c: c.id)  # fmt: skip
@pytest.mark.parametrize("name", [n for n in JOBS if n not in ("cosine", "soft", "hard")])
@pytest.mark.kernels
def test_other_forms(name: str, case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    if case.id == "huge" and name in ("dot", "euclidean"):
        case = case._replace(magnitude=10.0, center_magnitude=30.0)
    outputs, _ = against_reference(name, case, dtype, backend, device)
    if case.labels == "ignored" and name in ("hard-area", "pulled", "pull"):
        assert not outputs[-1].any()


@pytest.mark.parametrize("name", ["cosine", "euclidean", "pulled", "soft"])
def test_gradient_to_one_side(name: str, backend: str, device: str) -> None:
    for case in (NAMED["two-classes"], NAMED["channels-last-own"]):
        for leaf in JOBS[name].learn:
            against_reference(name, case, torch.float32, backend, device, (leaf,))


@pytest.mark.parametrize("name", JOBS)
def test_one_channel(name: str, backend: str, device: str) -> None:
    """A cosine is then a sign, whose gradient is rounding and no more."""
    case = Case("one-channel", (2, 4, 9), 1, 6)
    if name not in ("cosine", "pulled", "pull"):
        against_reference(name, case, torch.float32, backend, device)
        return
    inputs = make(case, device=device)
    outputs, grads = run(JOBS[name], inputs, case, backend=backend)
    truth, _ = run(JOBS[name], double(inputs), case, backend="reference")
    for ours, exact in zip(outputs, truth, strict=True):
        torch.testing.assert_close(ours.double().cpu(), exact, rtol=1e-6, atol=1e-5)
    for leaf, grad in zip(JOBS[name].learn, grads, strict=True):
        assert grad.abs().max() < 1e-3 * (1 / getattr(inputs, leaf).abs()).max()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("name", ["cosine", "pulled", "soft", "hard"])
def test_more_pixels_than_a_panel(name: str, layout: str, backend: str, device: str) -> None:
    case = Case("panels", (2, 61, 97), 40, 7, layout=layout)
    against_reference(name, case, torch.float32, backend, device)
    # a pixel's gradient of class means is made of a row for each class, which the tensor cores take in bf16
    against_reference(name, case, torch.bfloat16, backend, device, shared=name in ("soft", "hard"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_centers_and_logits_of_another_dtype(dtype: torch.dtype, backend: str, device: str) -> None:
    """Half-precision features against fp32 centers and logits, as autocast leaves them; and the reverse."""
    skip_unsupported(backend, dtype)
    case = NAMED["primes"]
    for name in ("cosine", "euclidean", "soft"):
        for narrow in ("features", JOBS[name].learn[1]):
            inputs = make(case, torch.float32, device)
            inputs = inputs._replace(**{narrow: getattr(inputs, narrow).to(dtype)})
            truth = run(JOBS[name], double(inputs), case, dtype=dtype, backend="reference")
            plain, got = (run(JOBS[name], inputs, case, dtype=dtype, backend=b) for b in ("reference", backend))
            assert got[0][0].dtype == inputs.features.dtype
            assert_as_good(got[0][0], plain[0][0], truth[0][0], got[0][0].dtype)
            for leaf, ours, simple, exact in zip(JOBS[name].learn, got[1], plain[1], truth[1], strict=True):
                assert ours.dtype == getattr(inputs, leaf).dtype
                assert_gradient(ours, simple, exact, dtype)


@pytest.mark.parametrize("magnitude", [1e-20, 1e-12, 1e-6, 1e4, 1e18])
def test_norms_of_any_magnitude(magnitude: float, backend: str, device: str) -> None:
    """Above 1e-12 unit vectors, below it x / 1e-12; and the gradient that goes with them."""
    case = Case("norms", (2, 3, 5), 6, 4, scale=1.0)
    for side in ("features", "centers"):
        inputs = make(case, torch.float64, device)
        inputs = inputs._replace(**{side: getattr(inputs, side) * magnitude})
        got, plain = (run(JOBS["pulled"], inputs, case, backend=b) for b in (backend, "reference"))
        for ours, exact in zip(got[0] + got[1], plain[0] + plain[1], strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9 * float(exact.abs().max()))


def test_magnitudes_at_the_ends_of_fp16(backend: str, device: str) -> None:
    """Squares overflow and 1e-12 underflows in fp16; norms and sums are in fp32."""
    features = torch.zeros(1, 64, 1, 3, dtype=torch.float16, device=device)
    features[..., 0], features[0, 0, 0, 1] = 1e4, 6e-8
    features.requires_grad_()
    centers = torch.full((2, 64), 6e4, dtype=torch.float16, device=device)
    logits = mk.center_similarity(features, centers, scale=1.0, backend=backend)
    torch.testing.assert_close(logits[0, 0, 0].float().cpu(), torch.tensor([1.0, 0.125, 0.0]), rtol=1e-3, atol=0)
    (grad,) = torch.autograd.grad(logits.sum(), features)
    assert grad[..., 0].isfinite().all() and not grad[..., 2].any()
    labels = torch.zeros(1, 1, 3, dtype=torch.long, device=device)
    means = mk.class_centers(features.detach() * 3, labels, num_classes=1, average="area", backend=backend)
    assert means[0, 0, 1] == 1e4


@pytest.mark.parametrize("make_upstream", [
    lambda t: torch.ones((), device=t.device).expand(t.shape),
    lambda t: torch.rand(t.shape, device=t.device).mT.contiguous().mT,
    lambda t: torch.rand(t.shape, device=t.device)[:, :1].expand(t.shape),
    lambda t: torch.rand((*t.shape[:-1], 3 * t.shape[-1]), device=t.device)[..., ::3],
    lambda t: torch.rand(t.shape, device=t.device).movedim(1, -1).contiguous().movedim(-1, 1),
], ids=["expanded", "transposed", "broadcast", "strided", "channels-last"])  # fmt: skip
def test_upstream_gradient_of_any_stride(make_upstream, backend: str, device: str) -> None:
    case = NAMED["channels-last-own"]
    inputs = make(case, device=device)
    for name in ("cosine", "euclidean", "soft", "hard"):
        results = []
        for i, b in ((inputs, backend), (inputs, "reference"), (double(inputs), "reference")):
            leaves = [getattr(i, leaf).detach().requires_grad_() for leaf in JOBS[name].learn]
            output = JOBS[name].call(i._replace(**dict(zip(JOBS[name].learn, leaves, strict=True))), case, backend=b)
            torch.manual_seed(0)
            results.append(torch.autograd.grad(output, leaves, make_upstream(output).to(output.dtype)))
        for got, plain, truth in zip(*results, strict=True):
            assert_gradient(got, plain, truth, torch.float32)


def test_absent_classes(backend: str, device: str) -> None:
    case = NAMED["absent"]
    inputs = make(case, device=device)
    kwargs = {"num_classes": 8, "return_present": True, "backend": backend}
    centers, present = mk.class_centers(inputs.features, inputs.labels, **kwargs)
    expected = torch.stack([torch.stack([m.any() for m in masks]) for masks in pixels_of(inputs.labels, case)])
    assert present.dtype == torch.bool and torch.equal(present, expected)
    assert not present[:, :4].any() and not centers[~present].any() and centers[present].any()
    soft, all_present = mk.class_centers(inputs.features, inputs.logits, return_present=True, backend=backend)
    assert all_present.all() and soft.shape == centers.shape


def test_labels_and_their_one_hot_logits_agree(backend: str, device: str) -> None:
    """Logits of 0 and 200: a softmax of 0 and 1."""
    inputs = make(NAMED["primes"]._replace(labels="full"), device=device)
    one_hot = 200.0 * F.one_hot(inputs.labels, 19).movedim(-1, 1).float()
    for average in ("mass", "area"):
        hard = mk.class_centers(inputs.features, inputs.labels, num_classes=19, average=average, backend=backend)
        soft = mk.class_centers(inputs.features, one_hot, average=average, backend=backend)
        torch.testing.assert_close(hard, soft, rtol=1e-5, atol=1e-6)


def test_every_label_dtype_is_the_same(backend: str, device: str) -> None:
    case = NAMED["primes"]
    inputs = make(case, device=device)
    dtypes = (torch.uint8, torch.int32, torch.int64)
    for name in ("hard", "pulled"):
        first, *others = (run(JOBS[name], inputs._replace(labels=inputs.labels.to(d)), case, backend=backend)
                          for d in dtypes)  # fmt: skip
        for other in others:
            assert all(torch.equal(a, b) for a, b in zip(first[0] + first[1], other[0] + other[1], strict=True))


def test_pull_is_what_its_similarity_pass_gives(backend: str, device: str) -> None:
    """And nothing goes to the centers."""
    for name in ("primes", "zeros-own", "ignore-0"):
        case = NAMED[name]
        inputs = make(case, device=device)
        inputs.centers.requires_grad_()
        alone = JOBS["pull"].call(inputs, case, backend=backend)
        assert not alone.requires_grad
        inputs.features.requires_grad_()
        _, pull = JOBS["pulled"].call(inputs, case, backend=backend)
        torch.testing.assert_close(alone, pull.detach(), rtol=1e-6, atol=0)
        grads = torch.autograd.grad(pull, inputs.centers, allow_unused=True)[0]
        assert grads is None or not grads.any()
        assert 0 <= alone <= 2 and alone.dtype == torch.float32


def literal_push(centers: Tensor, present: Tensor, margin: float) -> Tensor:
    """An image, a class, another class at a time."""
    images = []
    for w, there in zip(centers, present, strict=True):
        classes = len(w)
        terms = [
            sum((F.cosine_similarity(w[k], w[j], dim=0) - margin).relu() for j in range(classes) if j != k) / (classes - 1)
            for k in range(classes) if there[k]
        ]  # fmt: skip
        images.append(sum(terms) / len(terms) if terms else w.new_zeros(()))
    return torch.stack(images).mean()


@pytest.mark.parametrize("margin", [0.0, 0.3, -0.5, -2.0])
@pytest.mark.parametrize("shape", [(3, 7, 5), (1, 2, 3), (2, 19, 64)], ids=str)
def test_push(shape: tuple[int, int, int], margin: float) -> None:
    rng = torch.Generator().manual_seed(sum(shape))
    centers = torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()
    present = torch.rand(shape[:2], generator=rng) < 0.7
    present[-1] = False
    for some in (present, None):
        expected = literal_push(centers, torch.ones_like(present) if some is None else some, margin)
        ours = mk.center_push(centers, some, margin)
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
        if expected.requires_grad:
            grads = (torch.autograd.grad(loss, centers)[0] for loss in (ours, expected))
            torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-13)
    single = mk.center_push(centers[0].detach().float(), present[0], margin)
    torch.testing.assert_close(single.double(), literal_push(centers[:1], present[:1], margin), rtol=1e-5, atol=1e-6)
    assert single.dtype == torch.float32


def test_push_of_nothing_is_zero() -> None:
    """One class, no class present, no images, no channels; and a center of norm 0 pushes and is pushed by nobody."""
    for centers, present in (
        (torch.ones(1, 4), None),
        (torch.ones(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)),
        (torch.ones(0, 3, 4), None),
        (torch.ones(2, 3, 0), None),
        (torch.zeros(3, 4), None),
    ):
        centers.requires_grad_()
        push = mk.center_push(centers, present)
        push.backward()
        assert push == 0 and push.ndim == 0 and not centers.grad.any()
    half = torch.randn(4, 8, dtype=torch.bfloat16)
    assert mk.center_push(half).dtype == torch.float32


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.tuples(st.integers(0, 3), st.integers(0, 19), st.integers(1, 33)),
    channels=st.integers(2, 70),
    classes=st.integers(1, 40),
    centers=st.sampled_from(["shared", "own"]),
    layout=st.sampled_from(["nchw", "nhwc", "strided", "channels", "rows"]),
    labels=st.sampled_from(["mixed", "full", "absent"]),
    label_dtype=st.sampled_from([torch.uint8, torch.int32, torch.int64]),
    name=st.sampled_from(list(JOBS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_any_shape_agrees_with_the_reference(
    size, channels, classes, centers, layout, labels, label_dtype, name, dtype, seed
) -> None:
    case = Case(str(seed), size, channels, classes, centers, layout, labels, label_dtype)
    inputs = make(case, dtype)
    (outputs, grads), (values, true_grads) = (run(JOBS[name], inputs, case, backend=b) for b in (None, "reference"))
    for ours, theirs in zip(outputs, values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=1e-4)
    for ours, theirs in zip(grads, true_grads, strict=True):
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5 * (1 + scale))
