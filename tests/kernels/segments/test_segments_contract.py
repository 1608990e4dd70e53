"""Autograd, compilers, memory and determinism of the ops of the segments family."""

from __future__ import annotations

import pytest
import torch
from guard import Guarded, OnDevice, captured, never_waiting
from segments_cases import CASES, NAMED, Case, make
from threads import each_of
from torch import Tensor
from torch._subclasses import FakeTensorMode

import metricseg_kernels as mk
from metricseg_kernels.segments import op, reference

FAMILY = "segments"


def pipeline(x: Tensor, labels: Tensor, valid: Tensor, **kwargs) -> tuple[Tensor, ...]:
    """Clusters, segments and their means, from embeddings."""
    ids = mk.spherical_kmeans(x, valid=valid, grid=(3, 3), iterations=3, **kwargs)
    segments = mk.split_by_label(ids, labels, capacity=60, **kwargs)
    return ids, *segments, mk.segment_mean(x, segments.ids, 60, **kwargs)


def maps(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """(embeddings, labels, valid)."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 12, 14, generator=rng)
    labels = torch.randint(4, (2, 12, 14), generator=rng)
    labels[0, :3] = 255
    return x.to(device), labels.to(device), (torch.rand(2, 12, 14, generator=rng) < 0.9).to(device)


@pytest.mark.kernels
def test_opcheck(backend: str, device: str) -> None:
    for name in ("even", "masked", "init", "given-location", "larger", "channels-last"):
        arguments = make(NAMED[name], torch.float32, device)
        x, location = arguments["embeddings"].requires_grad_(), arguments["location"]
        size = list(arguments.get("size", x.shape[2:]))
        given = location if isinstance(location, Tensor) else None
        given = (x, given, arguments.get("valid"), arguments.get("init"), size, [5, 5], 2, location is True, False)
        torch.library.opcheck(torch.ops.metricseg.spherical_kmeans.default, (*given, backend))
    x, labels, _ = maps(device)
    ids = torch.randint(-1, 9, labels.shape, device=device)
    torch.library.opcheck(torch.ops.metricseg.split_by_label.default, (ids, labels, 20, 4, 255, backend))
    for last in (False, True):
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        torch.library.opcheck(torch.ops.metricseg.segment_sums.default, (x.detach().requires_grad_(), ids, 9, backend))
        upstream = torch.ones((), device=device).expand(9, 6)
        torch.library.opcheck(
            torch.ops.metricseg.segment_sums_backward.default,
            (upstream, ids, list(x.shape), torch.bfloat16, last, backend),
        )


def test_compile_fullgraph(backend: str, device: str) -> None:
    """In one graph, from embeddings to prototypes and back: nothing leaves it to ask for a size."""
    x, labels, valid = maps(device)
    torch._dynamo.reset()
    step = lambda x, *rest: pipeline(x * 2, *rest, backend=backend)  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for call in (step, compiled):
        leaf = x.clone().requires_grad_()
        found = call(leaf, labels, valid)
        (grad,) = torch.autograd.grad(found[-1].square().sum() + found[-1].sum(), leaf)
        results.append((*found, grad))
    for eager, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.kernels
def test_compile_with_inductor(backend: str, device: str) -> None:
    torch._dynamo.reset()
    step = lambda *arguments: pipeline(*arguments, backend=backend)  # noqa: E731
    for eager, ours in zip(step(*maps(device)), torch.compile(step, fullgraph=True)(*maps(device)), strict=True):
        torch.testing.assert_close(ours, eager)


def test_no_shape_depends_on_data() -> None:
    """With tensors that hold no data every line of the reference and of the ops runs: the host asks for none."""
    with FakeTensorMode():
        x, labels = torch.zeros(2, 6, 12, 14, requires_grad=True), torch.zeros(2, 12, 14, dtype=torch.long)
        for name in ("reference", "cuda"):
            if name == "reference":
                ids = reference.kmeans(x, None, labels > 0, None, (12, 14), (3, 3), 2, True, False)
                dense, found, count = reference.split(ids, labels, 60, 4, 255)
                sums, mass = reference.segment_sums(x, dense, 60)
            else:
                ids = torch.ops.metricseg.spherical_kmeans(x, None, None, None, [12, 14], [3, 3], 2, True, False, name)
                dense, found, count = torch.ops.metricseg.split_by_label(ids, labels, 60, 4, 255, name)
                sums, mass = torch.ops.metricseg.segment_sums(x, dense, 60, name)
            assert ids.shape == dense.shape == labels.shape and found.shape == (60,) and count.shape == ()
            assert sums.shape == (60, 6) and mass.shape == (60,)
            assert torch.autograd.grad(sums.sum(), x)[0].shape == x.shape


def test_the_reference_stays_on_the_device() -> None:
    """It is what runs on CUDA where the extension has no kernels."""
    with FakeTensorMode(), OnDevice():
        x, labels = torch.zeros(2, 6, 12, 14, device="cuda"), torch.zeros(2, 12, 14, dtype=torch.long, device="cuda")
        ids = reference.kmeans(x, None, None, None, (24, 28), (3, 3), 2, True, False)
        assert ids.shape == (2, 24, 28)
        ids = reference.kmeans(x, None, labels > 0, labels, (12, 14), (9, 1), 2, True, False)
        dense, _, _ = reference.split(ids, labels, 60, 4, 255)
        assert reference.segment_sums(x, dense, 60)[0].shape == (60, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
@pytest.mark.kernels
def test_margins_and_poison(case: Case, dtype: torch.dtype, backend: str, device: str, monkeypatch) -> None:
    """Every element of every output is written, nothing beside it, and no input."""
    arguments = make(case, dtype, device)
    x, guarded, results = arguments["embeddings"], Guarded(op.kernels(backend)), []
    upstream = torch.randn(40, x.shape[1], generator=torch.Generator().manual_seed(0)).to(x)
    for watched in (False, True):
        if watched:
            monkeypatch.setattr(op, "kernels", lambda _: guarded)
        ids = mk.spherical_kmeans(**arguments, backend=backend)
        segments = mk.split_by_label(ids, ids.clamp(min=0) % 3, capacity=40, backend=backend)
        results.append([ids, *segments])
        if case.size is None:
            leaf = x.detach().requires_grad_()
            mean = mk.segment_mean(leaf, segments.ids, 40, backend=backend)
            results[-1] += [mean.detach(), *torch.autograd.grad(mean, leaf, upstream)]
    assert guarded.calls == (4 if case.size is None else 2)
    for expected, got in zip(*results, strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_twice_the_same_and_for_any_number_of_threads(case: Case, backend: str, device: str) -> None:
    arguments = make(case, torch.float32, device)
    x, runs = arguments["embeddings"], []
    for _ in each_of(1, 1, 2, 3, backend=backend):
        ids = mk.spherical_kmeans(**arguments, backend=backend)
        segments = mk.split_by_label(ids, ids.clamp(min=0) % 3, capacity=40, backend=backend)
        runs.append([ids, *segments])
        if case.size is None and backend != "reference":
            leaf = x.detach().requires_grad_()
            mean = mk.segment_mean(leaf, segments.ids, 40, backend=backend)
            runs[-1] += [mean.detach(), *torch.autograd.grad(mean.square().sum(), leaf)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_an_image_alone_has_its_clusters(case: Case, backend: str, device: str) -> None:
    """Whatever the batch; in fp64, for sums come in other parts."""
    arguments = make(case, torch.float64, device)
    together = mk.spherical_kmeans(**arguments, backend=backend)
    for b in range(case.shape[0]):
        alone = {n: v[b : b + 1] if isinstance(v, Tensor) else v for n, v in arguments.items()}
        assert torch.equal(mk.spherical_kmeans(**alone, backend=backend)[0], together[b])


@pytest.mark.kernels
def test_gradient_has_the_memory_format_of_x(backend: str, device: str) -> None:
    x, _, _ = maps(device)
    leaf = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    ids = torch.zeros(2, 12, 14, dtype=torch.long, device=device)
    (grad,) = torch.autograd.grad(mk.segment_mean(leaf, ids, 3, backend=backend).sum(), leaf)
    assert grad.is_contiguous(memory_format=torch.channels_last) and not grad.is_contiguous()


@pytest.mark.kernels
def test_the_map_is_not_kept_alive(backend: str, device: str) -> None:
    """Backward needs ids and sums only."""
    x, labels, _ = maps(device)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        mk.segment_mean(x.requires_grad_(), labels % 4, 4, backend=backend)
    assert kept and all(t.numel() <= labels.numel() for t in kept)


def test_autocast_takes_maps_as_they_are(backend: str, device: str) -> None:
    arguments = make(NAMED["even"], torch.float32, device)
    expected = mk.spherical_kmeans(**arguments, backend=backend)
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(mk.spherical_kmeans(**arguments, backend=backend), expected)
        for dtype in (torch.bfloat16, torch.float32):
            x = arguments["embeddings"].to(dtype)
            assert mk.segment_mean(x, expected, 25, backend=backend).dtype == dtype


@pytest.mark.gpu
def test_the_host_never_waits() -> None:
    """Under the mode in which PyTorch raises at a synchronization, and captured into a CUDA graph."""
    x, labels, valid = maps("cuda")
    x.requires_grad_()

    def step() -> tuple[Tensor, ...]:
        found = pipeline(x, labels, valid)
        return *found, *torch.autograd.grad(found[-1].sum(), x)

    with never_waiting():
        step()
    graph, results = captured(step)
    graph.replay()
    for replayed, eager in zip(results, step(), strict=True):
        torch.testing.assert_close(replayed, eager)
