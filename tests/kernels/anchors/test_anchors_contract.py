"""What the ops of the anchors family owe beyond their results: to autograd, compilers, memory, and the host's time."""

from __future__ import annotations

import pytest
import torch
from anchors_cases import CASES, FEATURES, NAMED, STRATEGIES, Case, arguments, make, make_features
from guard import Guarded, OnDevice, captured, never_waiting
from threads import each_of
from torch import Tensor
from torch._subclasses import FakeTensorMode

import metricseg_kernels as mk
from metricseg_kernels.anchors import op, reference

FAMILY = "anchors"

by_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def sample_and_gather(features: Tensor, labels: Tensor, predictions: Tensor, confidence: Tensor, **kwargs):
    anchors = mk.sample_anchors(labels, predictions, confidence=confidence, **kwargs)
    return *anchors, mk.gather_pixels(features, anchors.index, backend=kwargs["backend"])


def map_and_features(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels, predictions, confidence = make(NAMED["even"], device)
    return torch.randn(2, 6, 16, 24, device=device), labels, predictions, confidence


@pytest.mark.kernels
def test_opcheck(backend: str, device: str) -> None:
    labels, predictions, _ = make(NAMED["primes"], device)
    seed = torch.tensor(3, device=device)
    for preferred in ((predictions, None), (None, predictions == 1)):
        torch.library.opcheck(
            torch.ops.metricseg.sample_pixels.default,
            (labels, *preferred, seed, 32, 5, 4, True, 256, 255, -1, backend),
        )
    for shape, layout in (p.values for p in FEATURES[1:4]):
        features, index = make_features(shape, layout, torch.float32, device)
        torch.library.opcheck(
            torch.ops.metricseg.gather_pixels.default, (features.requires_grad_(), index, True, 1e-12, backend)
        )
        rows, norms = torch.ops.metricseg.gather_pixels(features.detach(), index, True, 1e-12, backend)
        upstream = torch.ones((), device=device).expand(rows.shape)
        torch.library.opcheck(
            torch.ops.metricseg.gather_pixels_backward.default,
            (upstream, rows, norms, index, list(shape), layout == "nhwc", True, 1e-12, backend),
        )


@by_strategy
def test_compile_fullgraph(strategy: str, backend: str, device: str) -> None:
    """In one graph, from labels to rows and back: nothing leaves it to ask for a size."""
    features, *maps = map_and_features(device)
    seed = torch.tensor(5, device=device)
    torch._dynamo.reset()

    def step(features: Tensor, *maps: Tensor, seed: Tensor):
        return sample_and_gather(
            features * 2, *maps, seed=seed, strategy=strategy, max_samples=40, max_views=6, backend=backend
        )

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for call in (step, compiled):
        x = features.clone().requires_grad_()
        *anchors, rows = call(x, *maps, seed=seed)
        (grad,) = torch.autograd.grad(rows.square().sum() + rows.sum(), x)
        results.append((*anchors, rows, grad))
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.kernels
def test_compile_with_inductor(backend: str, device: str) -> None:
    """Seeds drawn inside the graph differ."""
    features, *maps = map_and_features(device)
    torch._dynamo.reset()
    call = lambda seed: sample_and_gather(  # noqa: E731
        features, *maps, seed=seed, max_samples=40, max_views=6, backend=backend
    )
    compiled = torch.compile(call, fullgraph=True)
    seed = torch.tensor(-(2**62) + 12345, device=device)
    for eager, ours in zip(call(seed), compiled(seed), strict=True):
        torch.testing.assert_close(ours, eager)
    assert not torch.equal(compiled(None)[0], compiled(None)[0])


@by_strategy
def test_no_shape_depends_on_data(strategy: str) -> None:
    """With tensors that hold no data every line of the reference and of the ops runs: the host asks for none."""
    with FakeTensorMode():
        labels, predictions = torch.zeros(2, 2, 16, 24, dtype=torch.long)
        features = torch.zeros(2, 6, 16, 24, requires_grad=True)
        preferred = reference.preferred(strategy, labels, predictions, torch.zeros(2, 16, 24), 0.7, 2, 255)
        seed = torch.zeros((), dtype=torch.long)
        inputs = reference.SampleInputs(labels, *preferred, seed, 40, 6, 6, strategy == "hard", 256, 255, -1)
        for name in ("reference", "cuda"):
            if name == "reference":
                index, sampled, count, _ = reference.sample(inputs)
                rows = reference.gather(features, index, True, 1e-12)
            else:
                index, sampled, count = torch.ops.metricseg.sample_pixels(*inputs, name)
                rows, _ = torch.ops.metricseg.gather_pixels(features, index, True, 1e-12, name)
            assert index.shape == sampled.shape == (40,) and count.shape == () and rows.shape == (40, 6)
            (grad,) = torch.autograd.grad(rows.sum(), features)
            assert grad.shape == features.shape


@by_strategy
def test_the_reference_stays_on_the_device(strategy: str) -> None:
    """It is what runs on CUDA where the extension has no kernels."""
    with FakeTensorMode(), OnDevice():
        labels = torch.zeros(2, 16, 24, dtype=torch.long, device="cuda")
        confidence, features = (torch.zeros(size, device="cuda") for size in ((2, 16, 24), (2, 6, 16, 24)))
        preferred = reference.preferred(strategy, labels, labels, confidence, 0.7, 2, 255)
        seed = torch.zeros((), dtype=torch.long, device="cuda")
        inputs = reference.SampleInputs(labels, *preferred, seed, 40, 6, 6, strategy == "hard", 256, 255, -1)
        index, *_ = reference.sample(inputs)
        assert reference.gather(features, index, True, 1e-12).shape == (40, 6)
        with pytest.raises(AssertionError, match="meets the host"):
            torch.tensor([1, 2]).to("cuda")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.kernels
def test_margins_and_poison(case: Case, backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every element of every output is written, nothing beside it, and no input."""
    labels, predictions, confidence = make(case, device)
    guarded = Guarded(op.kernels(backend))
    call = lambda: mk.sample_anchors(  # noqa: E731
        labels, predictions, seed=1, backend=backend, **arguments(case, "hard", confidence)
    )
    plain = call()
    monkeypatch.setattr(op, "kernels", lambda _: guarded)
    for expected, watched in zip(plain, call(), strict=True):
        assert torch.equal(expected, watched)
    assert guarded.calls == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "layout"), FEATURES)
@pytest.mark.kernels
def test_margins_and_poison_of_rows(shape, layout, dtype, backend: str, device: str, monkeypatch) -> None:
    features, index = make_features(shape, layout, dtype, device)
    guarded = Guarded(op.kernels(backend))
    results = []
    for watched in (False, True):
        if watched:
            monkeypatch.setattr(op, "kernels", lambda _: guarded)
        x = features.detach().requires_grad_()
        rows = mk.gather_pixels(x, index, backend=backend)
        results.append((rows.detach(), *torch.autograd.grad(rows.sum(), x)))
    assert guarded.calls == 2
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_twice_the_same_and_for_any_number_of_threads(backend: str, device: str) -> None:
    labels, predictions, _ = make(NAMED["primes"], device)
    runs = []
    for _ in each_of(1, 1, 2, 3, backend=backend):
        runs.append(mk.sample_anchors(labels, predictions, seed=9, max_views=8, backend=backend))
    for anchors in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(anchors, runs[0], strict=True))


def test_autocast_takes_the_features_as_they_are(backend: str, device: str) -> None:
    features, index = make_features((2, 5, 3, 4), "nchw", torch.bfloat16, device)
    with torch.autocast(device, torch.bfloat16):
        assert mk.gather_pixels(features, index, backend=backend).dtype == torch.bfloat16
        assert mk.gather_pixels(features.float(), index, backend=backend).dtype == torch.float32


@pytest.mark.gpu
@by_strategy
@pytest.mark.parametrize("name", ["reference", "cuda"])
def test_the_host_never_waits(name: str, strategy: str) -> None:
    """Under the mode in which PyTorch raises at a synchronisation, and captured into a CUDA graph."""
    features, *maps = map_and_features("cuda")
    features.requires_grad_()
    seed = torch.zeros((), dtype=torch.long, device="cuda")
    kwargs = {"strategy": strategy, "max_samples": 40, "max_views": 6, "backend": name}

    def step() -> tuple[Tensor, ...]:
        index, sampled, count, rows = sample_and_gather(features, *maps, seed=seed, **kwargs)
        return index, sampled, count, rows, *torch.autograd.grad(rows.square().sum() + rows.sum(), features)

    with never_waiting():
        step()
        mk.sample_anchors(*maps[:2], strategy=strategy, confidence=maps[2], backend=name)  # draws a seed
    graph, results = captured(step)
    for value in (3, 4):
        seed.fill_(value)
        graph.replay()
        for replayed, eager in zip(results, step(), strict=True):
            torch.testing.assert_close(replayed, eager)
